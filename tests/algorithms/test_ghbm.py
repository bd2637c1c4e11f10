"""GHBM, LocalGHBM and FedHBM: what the movement that they repeat sums to, and what clients remember."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from fl_hydra.arrays import Indices
from fl_hydra.errors import UserError
from fl_hydra.seams.rows import Rows
from fl_hydra.training.planning import plan_round
from fl_hydra.training.trainer import Trainer
from tests.support.make import experiment, trainer
from tests.support.quadratics import Quadratics

FAMILY = ("ghbm", "localghbm", "fedhbm")
SMALL = ("K=6", "C=0.5", "J=3", "precision=fp64", "optimizer=sgd", "batch_size=16")


def finished(run: Trainer) -> Trainer:
    while not run.finished:
        run.run_round()
    return run


@pytest.mark.parametrize("engine", ["loop", "stacked"])
@pytest.mark.parametrize("algorithm", FAMILY)
def test_without_beta_it_is_fedavg(algorithm: str, engine: str) -> None:
    settings = (*SMALL, "samples=1000")
    one = finished(trainer("algorithm=fedavg", *settings, engine=engine))
    other = finished(trainer(f"algorithm={algorithm}", "algorithm.beta=0", *settings, engine=engine))
    assert torch.equal(one.state.model, other.state.model)


class Flat(Quadratics):
    """Clients whose losses slope by 1 in the first `sloping` rounds, and not at all afterwards, when all movement is momentum."""

    sloping = 1

    def gradient_at(self, parameters: Tensor, ids: Indices) -> Tensor:
        return torch.full_like(parameters, float(self.run.sole_run.round < self.sloping))


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_the_movement_that_is_added_over_a_round_is_beta_times_the_past_one(schedule: str) -> None:
    """Two rounds of 3 steps of 0.1 along 1; then every round goes by beta times the mean of the last tau."""
    made = Flat("algorithm=ghbm", "algorithm.tau=2", "algorithm.beta=0.5", "C=1", "J=3", "samples=60", f"scheduler={schedule}")
    made.sloping = 2
    path = [0.0, *made.rounds(6)]
    assert schedule == "cosine" or path[:3] == pytest.approx([0, -0.3, -0.6], abs=1e-15)
    for t in range(2, 6):
        assert path[t + 1] - path[t] == pytest.approx(0.5 * (path[t] - path[t - 2]) / 2, abs=1e-14)


def test_the_cut_last_round_adds_as_much() -> None:
    """A round has 24 samples, and 10 are left for the third: each client takes steps of 4 and of 1 samples."""
    made = Flat("algorithm=ghbm", "algorithm.tau=1", "algorithm.beta=0.5", "C=1", "J=3", "batch_size=4", "samples=58")
    path = [0.0, *made.rounds(3)]
    assert made.run.finished
    assert np.diff(path).tolist() == pytest.approx([-0.3, -0.15, -0.075], abs=1e-14)


def test_by_default_tau_is_how_many_rounds_pass_between_those_of_a_client() -> None:
    assert trainer("algorithm=ghbm", "K=10", "C=0.2", "J=1").state.carried["past"].shape[1] == 5
    assert trainer("algorithm=ghbm", "algorithm.tau=3", "K=10", "C=0.2", "J=1").state.carried["past"].shape[1] == 3


@pytest.mark.parametrize("more", [(), ("participation.dropout=0.6", "C=0.2")], ids=["", "dropout"])
def test_the_server_remembers_its_models(more: tuple[str, ...]) -> None:
    """What it sends is (w^{t - tau} - w^t) / tau, also after rounds from which nobody reports."""
    run = trainer("algorithm=ghbm", "algorithm.tau=3", *SMALL, "K=5", "rounds=12", *more)
    models: list[Tensor] = []
    unheard = 0
    while not run.finished:
        models.append(run.state.model.clone())
        run.run_round()
        unheard += torch.equal(models[-1], run.state.model)
        rows = run.group.division.counts[0]
        expected = (models[-4] - models[-1]) / 3 if len(models) > 3 else torch.zeros_like(models[-1])
        torch.testing.assert_close(run.group.buffers.received["momentum"][:rows], expected.expand(rows, -1), rtol=0, atol=0)
    assert unheard > 0 or not more, "a round of a lone client that drops out is among them"


@pytest.mark.parametrize("algorithm", ["localghbm", "fedhbm"])
def test_two_clients_on_paper(algorithm: str) -> None:
    """C = 1, J = 2, rate 0.1, beta 0.5: each client's steps written out, with anchors that begin after its first round."""
    made = Quadratics(f"algorithm={algorithm}", "algorithm.beta=0.5", "C=1", "J=2", start=0.5)
    x, anchors = 0.5, dict[int, float]()
    for _ in range(4):
        ends = []
        for k, (a, b) in enumerate(((1.0, 0.0), (3.0, 1.0))):
            w, anchor = x, anchors.get(k)
            for _ in range(2):
                forward = 0.0 if anchor is None else (x if algorithm == "localghbm" else w) - anchor
                w = w - 0.1 * a * (w - b) + 0.5 / 2 * forward
            ends.append(w)
            anchors[k] = x if algorithm == "localghbm" else w
        x = sum(ends) / 2
        assert made.rounds(1) == [pytest.approx(x, abs=1e-14)]


@pytest.mark.parametrize(
    "more", [(), ("uplink=topk", "uplink.fraction=0.1"), ("participation.dropout=0.5",)], ids=["", "uplink", "dropout"]
)
def test_an_anchor_is_the_clients_own_model(more: tuple[str, ...]) -> None:
    """FedHBM: its last one, not what an uplink leaves of it; LocalGHBM: the last that it received. Who drops out keeps the old one."""
    for algorithm in ("fedhbm", "localghbm"):
        run = trainer(f"algorithm={algorithm}", *SMALL, "rounds=6", *more)
        expected: dict[int, Tensor] = {}
        ends: list[Tensor] = []
        _remember_ends(run, ends)
        while not run.finished:
            received = run.state.model[0].clone()
            plan = plan_round(run.sole_run)
            ends.clear()
            run.run_round()
            for row, client in enumerate(plan.ids.tolist()):
                if plan.reports is None or plan.reports[row]:
                    expected[client] = ends[row] if algorithm == "fedhbm" else received
        ids = np.arange(6)
        anchors, parts = (run.sole_run.clients.read(ids, f"state.{name}") for name in ("anchor", "C"))
        for client in ids.tolist():
            assert float(parts[client]) == (0.5 if client in expected else 0)
            assert torch.equal(anchors[client], expected.get(client, torch.zeros_like(anchors[client])))


def _remember_ends(run: Trainer, ends: list[Tensor]) -> None:
    """Record each row's parameters after its last step, in the order of rows."""
    algorithm = run.sole_run.experiment.algorithm
    after = algorithm.after_steps

    def recorded(rows: Rows) -> None:
        ends.extend(rows.parameters.clone())
        after(rows)

    algorithm.after_steps = recorded  # type: ignore[method-assign]


def test_what_is_sent() -> None:
    """GHBM sends the momentum beside the model; the other two nothing."""
    traffic = {}
    for name in ("fedavg", *FAMILY):
        traffic[name] = finished(trainer(f"algorithm={name}", *SMALL, "rounds=2")).sole_run.traffic
    plain = traffic["fedavg"]
    assert traffic["ghbm"].bytes_down == 2 * plain.bytes_down
    assert {(t.bytes_up, t.messages) for t in traffic.values()} == {(plain.bytes_up, plain.messages)}
    assert traffic["localghbm"] == traffic["fedhbm"] == plain


@pytest.mark.parametrize("wrong", ["algorithm.beta=-1", "algorithm.beta=nan", "algorithm.tau=0"])
def test_numbers_that_mean_nothing_are_refused(wrong: str) -> None:
    with pytest.raises(UserError, match=r"algorithm\.\w+=.*must be"):
        experiment("algorithm=ghbm", wrong)
