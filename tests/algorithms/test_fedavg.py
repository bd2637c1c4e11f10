"""FedAvg: clients that share nothing, and the mean of where they end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from fl_hydra.algorithms.base import State
from fl_hydra.algorithms.fedavg import FedAvg
from fl_hydra.participation.base import Cohort
from fl_hydra.training.rows import Batch, Clients, Gradient, Rows
from tests.support.exact import assert_exact, module_of, weights_of
from tests.support.make import trainer


@dataclass
class RecordingFedAvg(FedAvg):
    def __post_init__(self) -> None:
        self.seen: list[tuple[Tensor, Tensor]] = []

    def step(self, rows: Rows, gradient: Gradient, batches: Sequence[Batch], j: int) -> None:
        self.seen.append((batches[0].inputs.clone(), batches[0].targets.clone()))
        super().step(rows, gradient, batches, j)


def test_fedavg_with_all_clients_and_one_step_is_fedsgd() -> None:
    algorithm = RecordingFedAvg()
    run = trainer("algorithm=fedavg", "K=8", "C=1", "J=1", "rounds=4", "precision=fp64", "optimizer.weight_decay=0", algorithm=algorithm)
    assert len(set(run.member.shard_sizes.tolist())) == 2, "the weights should differ"
    while not run.finished:
        module = module_of(run)
        algorithm.seen.clear()
        run.run_round()
        share = run.member.shard_sizes / run.member.shard_sizes.sum()
        losses = [
            share[k] * nn.functional.cross_entropy(module(inputs[0]), targets[0]) for k, (inputs, targets) in enumerate(algorithm.seen)
        ]
        torch.stack(losses).sum().backward()
        gradient = run.group.layout.flat(parameter.grad for parameter in module.parameters() if parameter.grad is not None)
        assert_exact(run.state.model[0], weights_of(module, run) - 0.1 * gradient)


def test_identical_clients_average_to_one_of_them() -> None:
    """With one shard for all, full batches and equal starts, every client's end is the same, and so is the average."""

    @dataclass
    class Same(FedAvg):
        needs_ends: ClassVar[bool] = True

        def update(self, state, clients, starts, ends):  # type: ignore[no-untyped-def]
            assert_exact(ends, ends[:1].expand_as(ends))
            super().update(state, clients, starts, ends)

    run = trainer("algorithm=fedavg", "K=3", "C=1", "J=2", "rounds=1", "precision=fp64", "dataset.crop=0", "batch_size=5", algorithm=Same())
    run.member.sampler.indices = lambda client, cursor, count: np.arange(count) % 5  # type: ignore[method-assign]
    run.run_round()


@dataclass
class Keeping(FedAvg):
    """FedAvg that keeps every client's end."""

    needs_ends: ClassVar[bool] = True

    def update(self, state: State, clients: Clients, starts: Tensor, ends: Tensor) -> None:
        self.ends = ends.clone()
        super().update(state, clients, starts, ends)


COHORT = ("algorithm=fedavg", "K=4", "C=1", "J=3", "rounds=2", "precision=fp64", "batch_size=16", "dataset.crop=0")


def test_clients_do_not_share_a_model() -> None:
    """Each client starts from the server's model, not from what the client before it left behind."""
    together = Keeping()
    trainer(*COHORT, algorithm=together).run_round()
    for k in range(4):
        alone = trainer(*COHORT, algorithm=FedAvg())
        cohort = Cohort(np.array([k]))
        alone.member.experiment.participation.cohort = lambda _, cohort=cohort: cohort  # type: ignore
        alone.run_round()
        assert_exact(alone.state.model[0], together.ends[k])


def test_mean_taken_as_rows_come_in_is_the_mean_of_all_ends() -> None:
    streamed, whole = trainer(*COHORT), trainer(*COHORT, algorithm=Keeping())
    for run in (streamed, whole):
        while not run.finished:
            run.run_round()
    assert_exact(streamed.state.model, whole.state.model)
    assert streamed.member.traffic == whole.member.traffic


def test_rows_trained_in_threads_are_what_they_are_one_after_the_other() -> None:
    alone = trainer(*COHORT, algorithm=(one := Keeping()))
    alone.run_round()
    torch.set_num_threads(2)
    try:
        threaded = trainer(*COHORT, algorithm=(several := Keeping()))
        assert threaded.group.pool is not None
        assert {threaded.group.pool.submit(torch.get_num_threads).result() for _ in range(8)} == {1}
        threaded.run_round()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert torch.equal(one.ends, several.ends)
    assert threaded.member.computed == alone.member.computed
