"""Clients that drop out of a round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from fl_hydra.algorithms.base import State
from fl_hydra.algorithms.fedavg import FedAvg
from fl_hydra.participation.base import Cohort
from fl_hydra.participation.schemes import Uniform
from fl_hydra.training.planning import plan_round
from fl_hydra.training.rows import Batch, Clients, Gradient, Rows
from tests.support.cohorts import made


@pytest.mark.parametrize("engine", ["loop", "stacked"])
def test_those_who_drop_out_are_not_averaged(engine: str) -> None:
    """The mean of the others by their sizes; one model fewer is sent up for each, and the budget is what it was."""
    run = made("participation.dropout=0.5", "seed=1", engine=engine)
    plan = plan_round(made("participation.dropout=0.5", "seed=1").member)
    assert plan.reports is not None
    left = plan.ids[plan.reports]
    assert 0 < len(left) < 4, "the seed of this test"
    run.run_round()
    ends = []
    for k in left.tolist():
        alone = made("seed=1", engine="loop")
        alone.member.experiment.participation.cohort = lambda _, k=k: Cohort(np.array([k]))  # type: ignore
        alone.run_round()
        ends.append(alone.state.model[0])
    sizes = torch.from_numpy(run.member.shard_sizes[left].astype(float))
    torch.testing.assert_close(run.state.model[0], sizes / sizes.sum() @ torch.stack(ends), rtol=1e-12, atol=1e-12)
    payload = run.group.layout.size * 8
    assert (run.member.traffic.bytes_down, run.member.traffic.bytes_up) == (4 * payload, len(left) * payload)
    assert run.member.samples == run.member.computed == 4 * 2 * 4


def test_dropout_is_a_function_of_seed_round_and_client() -> None:
    rule = Uniform(dropout=0.3)
    everyone = rule.reports(np.arange(1000), 0, 5)
    some = np.array([3, 40, 999])
    assert rule.reports(some, 0, 5).tolist() == everyone[some].tolist()
    assert everyone.mean() == pytest.approx(0.7, abs=5 * np.sqrt(0.21 / 1000))
    assert everyone.tolist() != rule.reports(np.arange(1000), 0, 6).tolist()
    assert Uniform().reports(np.arange(9), 0, 5).all()


@pytest.mark.parametrize("server", ["sgd", "slowmo", "adam"])
def test_where_nobody_is_left_the_model_stays(server: str) -> None:
    run = made(f"server={server}")
    run.run_round()
    before = {name: tensor.clone() for name, tensor in run.state.tensors().items()}
    up, samples = run.member.traffic.bytes_up, run.member.samples
    run.member.experiment.participation.dropout = 1 - 1e-12
    run.run_round()
    assert all(torch.equal(tensor, before[name]) for name, tensor in run.state.tensors().items())
    assert run.member.traffic.bytes_up == up
    assert run.member.samples == samples + 4 * 2 * 4
    run.member.experiment.participation.dropout = 0.0
    run.run_round()
    assert not torch.equal(run.state.model, before["model"])


@pytest.mark.parametrize("engine", ["loop", "stacked"])
def test_of_a_cut_round_those_with_samples_may_be_the_ones_that_drop_out(engine: str) -> None:
    """What is left of the budget, two samples, are two clients'; whatever the others do, without these there is nothing to average."""
    lost = 0
    for seed in range(8):
        run = made("participation.dropout=0.5", f"seed={seed}", "rounds=null", f"samples={4 * 2 * 4 + 2}", engine=engine)
        run.run_round()
        before = run.state.model.clone()
        plan = made("participation.dropout=0.5", f"seed={seed}", "rounds=null", f"samples={4 * 2 * 4 + 2}", engine=engine).member
        plan.samples, plan.round, plan.cursors = run.member.samples, run.member.round, run.member.cursors.copy()
        reports = plan_round(plan).reports
        run.run_round()
        assert run.member.finished and run.state.model.isfinite().all()
        if reports is not None and not reports.any():
            lost += 1
            assert torch.equal(run.state.model, before)
    assert 0 < lost < 8, "the seeds of this test"


def test_one_that_diverges_and_drops_out_does_no_harm() -> None:
    run = made("participation.dropout=0.999999999")
    run.member.experiment.optimizer.lr = 1e200
    for _ in range(2):
        run.run_round()
        assert run.member.lr == 1e200
    assert run.state.model.isfinite().all()


@dataclass
class Remembering(FedAvg):
    """Clients that count their steps and the rounds that they were told about, and begin at a place of their own."""

    client_slots: ClassVar[dict[str, bool]] = {"steps": False, "told": True}
    own_starts: ClassVar[bool] = True
    needs_ends: ClassVar[bool] = True

    def start(self, state: State, clients: Clients) -> Tensor:
        return clients.receive(state.model) + torch.from_numpy(clients.ids)[:, None] / 100

    def step(self, rows: Rows, gradient: Gradient, batches: Sequence[Batch], j: int) -> None:
        super().step(rows, gradient, batches, j)
        rows.slots["steps"] += 1

    def update(self, state: State, clients: Clients, starts: Tensor, ends: Tensor) -> None:
        self.seen = (clients.ids, clients.weights.tolist(), (ends - starts).abs().amax(1).tolist())
        clients.slots["told"] += 1
        state.model.copy_(clients.mean(ends))


@pytest.mark.parametrize("engine", ["loop", "stacked"])
def test_a_client_that_drops_out_has_lost_its_round(engine: str) -> None:
    """Its state is what it was, its weight is 0, and what stands for its end is its own start; so too where nobody is left."""
    method = Remembering()
    run = made("participation.dropout=0.5", algorithm=method, engine=engine)
    reported, nobody = np.zeros(8), 0
    for number in range(12):
        if number == 5:
            run.member.experiment.participation.dropout = 1 - 1e-12
        method.seen = (np.zeros(0, np.int64), [], [])
        before = run.state.model.clone()
        run.run_round()
        ids, weights, moved = method.seen
        nobody += len(ids) == 0
        assert torch.equal(run.state.model, before) == (not len(ids))
        for client, weight, distance in zip(ids, weights, moved, strict=True):
            reported[client] += weight > 0
            assert (weight > 0) == (distance > 0)
        run.member.experiment.participation.dropout = 0.5
    assert nobody and reported.any()
    run.member.clients.retire()
    for k in range(8):
        state = run.member.clients._load(k)
        found = (0.0, 0.0) if state is None else (float(state["steps"]), float(state["told"][0]))
        assert found == (2 * reported[k], reported[k])
