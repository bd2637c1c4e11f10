"""pFedMe: steps on paper, its fixed point, and what its inner steps cost."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fl_hydra.errors import UserError
from tests.support.make import experiment, trainer
from tests.support.quadratics import A, B, Quadratics

NEAR = ("algorithm.inner_steps=40", "algorithm.inner_lr=0.3")
"""theta comes to its minimum: errors shrink by 0.1 and 0.5 in each step at lam=2."""


def test_one_round_on_paper() -> None:
    """From x = 0.5: theta = 0.5 - 0.1 * 1 * 0.5 = 0.45 and 0.5 - 0.1 * 3 * (0.5 - 1) = 0.65, then theta steps from there, held to x."""
    made = Quadratics("algorithm=pfedme", "algorithm.lam=2", "algorithm.inner_steps=2", "algorithm.inner_lr=0.1", "C=1", "J=1", start=0.5)
    first = 0.45 - 0.1 * (0.45 + 2 * (0.45 - 0.5))
    second = 0.65 - 0.1 * (3 * (0.65 - 1) + 2 * (0.65 - 0.5))
    ends = [0.5 - 0.1 * 2 * (0.5 - theta) for theta in (first, second)]
    assert made.rounds(1) == [pytest.approx(sum(ends) / 2, abs=1e-15)]
    own = made.run.sole_run.clients.read(np.arange(2), "state.own")
    assert own[:, 0].tolist() == pytest.approx([first, second], abs=1e-15)


def test_of_three_samples_in_a_batch_of_four_theta_takes_three_quarters_of_a_step() -> None:
    """Of 14 samples each client has 7: a batch of four, and one of three."""
    words = ("algorithm=pfedme", "algorithm.lam=2", "algorithm.inner_steps=2", "algorithm.inner_lr=0.1", "C=1", "J=2")
    made = Quadratics(*words, "batch_size=4", "samples=14", start=0.5)
    ends, thetas = [], []
    for a, b in zip(A, B, strict=True):
        w = theta = 0.5
        for part in (1.0, 0.75):
            for _ in range(2):
                theta -= part * 0.1 * (a * (theta - b) + 2 * (theta - w))
            w -= part * 0.1 * 2 * (w - theta)
        ends.append(w)
        thetas.append(theta)
    assert made.rounds(1) == [pytest.approx(sum(ends) / 2, abs=1e-15)]
    assert made.run.finished
    assert made.run.sole_run.clients.read(np.arange(2), "state.own")[:, 0].tolist() == pytest.approx(thetas, abs=1e-15)


@pytest.mark.parametrize(("J", "beta"), [(1, 1.0), (4, 1.0), (1, 0.5)])
def test_its_fixed_point_on_quadratics(J: int, beta: float) -> None:
    """An envelope of curvature a is one of curvature q = a lam / (a + lam), so that w is FedAvg's with q: r = 1 - eta q."""
    made = Quadratics("algorithm=pfedme", "algorithm.lam=2", *NEAR, f"algorithm.beta={beta}", "C=1", f"J={J}", "optimizer.lr=0.8")
    moved = [1 - (1 - 0.8 * 2 * a / (a + 2)) ** J for a in A]
    found = made.rounds(50)
    assert found[0] == pytest.approx(beta * moved[1] / 2, abs=1e-12), "from 0, where the first client stays"
    x = moved[1] / sum(moved)
    assert found[-1] == pytest.approx(x, abs=1e-9)
    own = made.run.sole_run.clients.read(np.arange(2), "state.own")[:, 0].tolist()
    for theta, a, b in zip(own, A, B, strict=True):
        w = b + (x - b) * (1 - 0.8 * 2 * a / (a + 2)) ** (J - 1)  # where the last step begins
        assert theta == pytest.approx((a * b + 2 * w) / (a + 2), abs=1e-9)


def test_at_beta_1_the_server_takes_the_mean_bit_by_bit() -> None:
    words = ("algorithm=pfedme", "K=6", "C=0.5", "J=3", "precision=fp64", "rounds=1", "batch_size=16", "model.filters=2")
    whole, half = trainer(*words), trainer(*words, "algorithm.beta=0.5")
    before = whole.state.model.clone()
    ends = []
    outer = type(whole.sole_run.experiment.algorithm).outer

    def seen(state: object, clients: object, mean: torch.Tensor) -> None:
        ends.append(mean.clone())
        outer(whole.sole_run.experiment.algorithm, state, clients, mean)  # type: ignore[arg-type]

    whole.sole_run.experiment.algorithm.outer = seen  # type: ignore[method-assign]
    whole.run_round()
    half.run_round()
    assert torch.equal(whole.state.model, ends[0])
    torch.testing.assert_close(half.state.model, (before + ends[0]) / 2, rtol=0, atol=1e-15)


def test_inner_steps_cost_gradients_and_a_batch_counts_once() -> None:
    words = ("K=6", "C=0.5", "J=3", "rounds=2", "batch_size=16", "model.filters=2")
    plain, made = trainer("algorithm=fedavg", *words), trainer("algorithm=pfedme", "algorithm.inner_steps=4", *words)
    for run in (plain, made):
        while not run.finished:
            run.run_round()
    one, other = plain.evaluate()[0], made.evaluate()[0]
    assert other["samples"] == one["samples"] and other["bytes_up"] == one["bytes_up"]
    assert other["flops"] == 4 * float(one["flops"] or 0)
    assert other["seconds"] == pytest.approx(4 * float(one["seconds"] or 0))


def test_what_does_not_go_is_refused() -> None:
    with pytest.raises(UserError, match=r"algorithm=pfedme has an outer step of its own.*leave server and its keys out"):
        experiment("algorithm=pfedme", "server=adam")
    with pytest.raises(UserError, match=r"algorithm.inner_steps=0: theta takes at least 1 step"):
        experiment("algorithm=pfedme", "algorithm.inner_steps=0")
