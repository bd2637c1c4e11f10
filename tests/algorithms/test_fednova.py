"""FedNova on quadratics with unequal work: what its paper promises, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fl_hydra.arrays import Indices
from fl_hydra.errors import UserError
from fl_hydra.local_steps.base import LocalSteps
from tests.support.make import experiment, trainer
from tests.support.quadratics import Quadratics

A, B = (1.0, 3.0), (0.0, 1.0)


@pytest.fixture
def unequal(monkeypatch: pytest.MonkeyPatch) -> None:
    """J = (1, 8), which is not symmetric about a whole J, as `local_steps.spread` is."""
    monkeypatch.setattr(LocalSteps, "of_clients", lambda *_: np.array([1, 8], np.int64))


def settled(name: str, lr: float, rounds: int, *more: str) -> float:
    return Quadratics(f"algorithm={name}", "C=1", "J=8", "local_steps.spread=0.5", f"optimizer.lr={lr}", *more).rounds(rounds)[-1]


def reach(J: int, lr: float, momentum: float = 0.0, mu: float = 0.0, nesterov: bool = False) -> float:
    """|a_k| by its definition: what J steps along a gradient of 1 come to, with the proximal term."""
    u = x = 0.0
    for _ in range(J):
        g = 1 - mu * x
        u = momentum * u + g
        x += lr * (g + momentum * u if nesterov else u)
    return x


def map_of(a: float, J: int, lr: float, momentum: float, mu: float, nesterov: bool) -> tuple[float, float]:
    """(r, s) of J local steps on a / 2 (w - b)^2 from x: w - x = -s (x - b); r = 1 - s."""
    u, w = 0.0, 1.0  # b = 0, x = 1
    for _ in range(J):
        g = a * w + mu * (w - 1)
        u = momentum * u + g
        w -= lr * (g + momentum * u if nesterov else u)
    return w, 1 - w


@pytest.mark.usefixtures("unequal")
def test_its_fixed_point_and_fedavgs() -> None:
    """sum s_k b_k / sum s_k, s_k = (1 - r_k^J_k) / J_k, where FedAvg has no division by J_k."""
    s = [(1 - 0.9), (1 - 0.7**8) / 8]
    assert s[1] / sum(s) == pytest.approx(0.541, abs=5e-4)
    assert settled("fednova", 0.1, 300) == pytest.approx(s[1] / sum(s), abs=1e-12)
    assert settled("fedavg", 0.1, 300) == pytest.approx(8 * s[1] / (s[0] + 8 * s[1]), abs=1e-12) == pytest.approx(0.904, abs=5e-4)


@pytest.mark.usefixtures("unequal")
def test_it_reaches_the_optimum_as_the_rate_goes_to_0() -> None:
    """3/4, at first order in the rate; FedAvg's limit is sum J_k a_k b_k / sum J_k a_k = 0.96."""
    off = [0.75 - settled("fednova", lr, 250) for lr in (0.08, 0.04)]
    assert 0 < off[1] < 0.12 and off[0] / off[1] == pytest.approx(2, abs=0.5)
    assert settled("fedavg", 0.04, 250) > 0.9


@pytest.mark.usefixtures("unequal")
@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_and_the_proximal_term_are_part_of_what_is_divided_by(nesterov: bool) -> None:
    settings = ("optimizer=sgdm", "optimizer.momentum=0.6", f"optimizer.nesterov={nesterov}", "algorithm.mu=0.5")
    each = [map_of(a, J, 0.05, 0.6, 0.5, nesterov)[1] / reach(J, 0.05, 0.6, 0.5, nesterov) for a, J in ((1.0, 1), (3.0, 8))]
    assert settled("fednova", 0.05, 400, *settings) == pytest.approx(each[1] / sum(each), abs=1e-12)


@pytest.mark.parametrize("engine", ["loop", "stacked"])
@pytest.mark.parametrize("server", ["sgd", "fedadam"])
def test_with_equal_work_it_is_fedavg(engine: str, server: str) -> None:
    command = ("K=10", "C=0.3", "J=3", "precision=fp64", "optimizer=sgd", f"server={server}", "samples=432", "batch_size=16")
    one, other = (trainer(f"algorithm={name}", *command, engine=engine) for name in ("fedavg", "fednova"))
    while not one.finished:
        one.run_round()
        other.run_round()
    torch.testing.assert_close(one.state.model, other.state.model, rtol=0, atol=1e-13)


def test_a_cut_round_and_drop_outs_divide_by_what_was_done() -> None:
    """9 samples are left for rounds of 16: rows take 4, 4 and 1 batches of 1, or so; who has dropped out has no weight."""
    made = Quadratics(
        "algorithm=fednova", "C=1", "J=4", "samples=25", "participation.dropout=0.3", a=(1.0, 3.0, 2.0, 5.0), b=(0.0, 1.0, -1.0, 2.0)
    )
    done: list[Indices] = []
    original = made.run.sole_run.experiment.algorithm.update

    def update(state, clients, starts, ends):  # type: ignore[no-untyped-def]
        before = state.model.clone()
        original(state, clients, starts, ends)
        tau = np.array([0.1 * steps for steps in clients.steps])
        p = clients.weights.numpy()
        each = [0.0 if t == 0 else float(end[0] - before[0, 0]) / t for t, end in zip(tau, ends, strict=True)]
        assert float(state.model[0, 0] - before[0, 0]) == pytest.approx(float(p @ tau) * float(p @ np.array(each)), abs=1e-12)
        done.append(clients.steps)

    made.run.sole_run.experiment.algorithm.update = update  # type: ignore[method-assign]
    while not made.run.finished:
        made.rounds(1)
    assert done[-1].sum() == 9 and len({*done[-1].tolist()}) > 1


@pytest.mark.parametrize("optimizer", ["adamw", "sgd optimizer.clip=1"])
def test_other_rules_inside_are_refused(optimizer: str) -> None:
    with pytest.raises(UserError, match=r"algorithm=fednova: normalises steps of SGD.*choose optimizer=sgd or sgdm"):
        experiment("algorithm=fednova", *f"optimizer={optimizer}".split())
