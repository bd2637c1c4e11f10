"""Algorithms against the properties of their papers, in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fl_hydra.algorithms.base import Algorithm, State, algorithms
from fl_hydra.algorithms.events import EventDriven
from fl_hydra.algorithms.fedavg import FedAvg
from fl_hydra.algorithms.localsgd import LocalSGD
from fl_hydra.optim.base import Layers
from fl_hydra.optim.outer import Outer, OuterSGD
from fl_hydra.optim.sgdm import SGDM
from fl_hydra.participation.base import Cohort
from fl_hydra.runs.identity import describe
from fl_hydra.training.fabric import Fabric, Traffic
from fl_hydra.training.planning import plan_round
from fl_hydra.training.rows import Batch, Clients, Gradient, Rows, Server
from fl_hydra.training.trainer import Trainer
from tests.support.make import experiment, kind, trainer


def assert_exact(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0.0, atol=1e-12)


@dataclass
class RecordingLocalSGD(LocalSGD):
    def __post_init__(self) -> None:
        self.seen: list[tuple[Tensor, Tensor, Tensor | None]] = []

    def step(self, rows: Rows, gradient: Gradient, batches: Sequence[Batch], j: int) -> None:
        self.seen.append((batches[0].inputs.clone(), batches[0].targets.clone(), batches[0].weights))
        super().step(rows, gradient, batches, j)


@dataclass
class RecordingFedAvg(FedAvg):
    def __post_init__(self) -> None:
        self.seen: list[tuple[Tensor, Tensor]] = []

    def step(self, rows: Rows, gradient: Gradient, batches: Sequence[Batch], j: int) -> None:
        self.seen.append((batches[0].inputs.clone(), batches[0].targets.clone()))
        super().step(rows, gradient, batches, j)


def module_of(run: Trainer) -> nn.Module:
    """An ordinary module with the trainer's present weights."""
    module = run.group.architecture.build().double()
    with torch.no_grad():
        for parameter, value in zip(module.parameters(), run.group.layout.views(run.state.model[0]).values(), strict=True):
            parameter.copy_(value)
    return module


def weights_of(module: nn.Module, run: Trainer) -> Tensor:
    return run.group.layout.flat(parameter.detach() for parameter in module.parameters())


def test_one_worker_is_torch_sgd_step_by_step() -> None:
    algorithm = RecordingLocalSGD()
    run = trainer(
        "algorithm=localsgd", "K=1", "J=1", "rounds=6", "precision=fp64", "batch_size=16", "scheduler.warmup=0.3", algorithm=algorithm
    )
    module = module_of(run)
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0, momentum=0.9, weight_decay=1e-3)
    while not run.finished:
        run.run_round()
        inputs, targets, _ = algorithm.seen[-1]
        optimizer.param_groups[0]["lr"] = run.sole_run.lr
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(inputs[0]), targets[0]).backward()
        optimizer.step()
        assert_exact(run.state.model[0], weights_of(module, run))


AWKWARD = {"centralized": ("samples=2605",), "localsgd": ("K=4", "J=3", "samples=1155"), "fedavg": ("K=10", "C=0.3", "J=3", "samples=700")}
"""Budgets that leave a part of a batch at the end, of other sizes to different rows."""


@pytest.mark.parametrize("more", [(), ("local_steps.spread=0.5",)], ids=["", "spread"])
@pytest.mark.parametrize("algorithm", list(algorithms))
def test_a_step_of_a_part_of_its_batches_takes_that_part_of_the_rate(algorithm: str, more: tuple[str, ...]) -> None:
    """b of B samples, b / B of the rate: of each row by itself, in every method. The rate of the metrics stays the schedule's."""
    if more and (kind(algorithm) == "centralized" or issubclass(algorithms[algorithm], EventDriven) or algorithms[algorithm].lockstep):
        return
    run = trainer(
        f"algorithm={algorithm}",
        "batch_size=16",
        "optimizer=sgd",
        "optimizer.lr=0.25",
        "scheduler=constant",
        *AWKWARD[kind(algorithm)],
        *more,
    )
    method = run.sole_run.experiment.algorithm
    original, parts = method.step, list[float]()

    def step(rows: Rows, gradient: Gradient, batches: Sequence[Batch], j: int) -> None:
        b = np.array([batch.counts for batch in batches]).sum(0)
        assert rows.lr[:, j].tolist() == pytest.approx((0.25 * b / (16 * len(batches))).tolist(), rel=1e-6)
        parts.extend(b.tolist())
        original(rows, gradient, batches, j)

    method.step = step  # type: ignore[method-assign]
    while not run.finished:
        run.run_round()
    assert sum(parts) == run.sole_run.samples == run.sole_run.experiment.budget
    assert any(0 < part < 16 * method.batches_per_step for part in parts)
    assert run.evaluate()[0]["lr"] == 0.25


@pytest.mark.parametrize("optimizer", ["sgdm", "lars", "adamw"])
def test_of_a_last_step_only_the_new_part_is_scaled(optimizer: str) -> None:
    """LARS keeps rates inside its velocity: the old velocity is not scaled. SGD with momentum and AdamW take their rule at that rate."""
    algorithm = RecordingLocalSGD()
    settings = (
        "algorithm=localsgd",
        "K=1",
        "J=4",
        "precision=fp64",
        "batch_size=16",
        f"optimizer={optimizer}",
        "samples=53",
        "scheduler=constant",
    )
    run = trainer(*settings, algorithm=algorithm)
    rule = run.sole_run.experiment.optimizer
    weights = run.state.model.clone()
    slots = {
        name: torch.zeros(1, run.group.layout.size if width == "row" else 1, dtype=torch.float64) for name, width in rule.slots.items()
    }
    hyper = {name: torch.tensor([[value]], dtype=torch.float64) for name, value in rule.hyper.items()}
    run.run_round()
    assert run.finished
    for (inputs, targets, _), b in zip(algorithm.seen, (16, 16, 16, 5), strict=True):
        module = module_of(run)
        with torch.no_grad():
            for parameter, value in zip(module.parameters(), run.group.layout.views(weights[0]).values(), strict=True):
                parameter.copy_(value)
        nn.functional.cross_entropy(module(inputs[0, :b]), targets[0, :b]).backward()
        gradient = run.group.layout.flat(parameter.grad for parameter in module.parameters() if parameter.grad is not None)[None]
        rule.step(weights, gradient, slots, hyper, torch.tensor([[rule.lr * b / 16]], dtype=torch.float64), run.group.layout.layers)
    assert_exact(run.state.model, weights)


def test_a_budget_that_ends_within_a_batch_has_another_name_than_before_and_no_other_run_has() -> None:
    def revised(*overrides: str) -> object:
        return describe(experiment(*overrides)).get("revisions")

    for overrides in (
        ("algorithm=fedavg", "K=20", "C=0.2", "rounds=7"),
        ("algorithm=fedavg", "K=20", "C=0.2", "batch_size=10", "samples=4000"),
        ("samples=64000",),
        ("algorithm=localsgd", "K=4", "samples=2560"),
        ("algorithm=localsgd", "K=4", "J=8", "local_steps.spread=0.5", "rounds=3"),
        ("algorithm=async_sgd", "K=4", "samples=640"),
        ("algorithm=gossip_aga", "K=4", "J=8", "samples=2560"),
    ):
        assert revised(*overrides) is None, overrides
    for overrides in (
        ("algorithm=fedavg", "K=20", "C=0.2", "epochs=20"),
        ("epochs=1",),
        ("algorithm=localsgd", "K=4", "samples=2624"),  # whole batches, but not of all workers
        ("algorithm=localsgd", "K=4", "J=8", "local_steps.spread=0.5", "samples=2560"),
        ("algorithm=async_sgd", "K=4", "samples=650"),
    ):
        assert revised(*overrides) == {"cut_steps": 2}, overrides


def test_slow_momentum_divides_by_the_mean_rate_of_the_rounds_steps() -> None:
    """u = (x - mean) / gamma after the first round, whose rates rise from 1/20 to 8/20 of the peak; in the cut last round too, whose
    steps of a part of a batch count as whole ones."""
    settings = ("K=4", "J=8", "batch_size=8", "samples=1600", "precision=fp64", "optimizer=sgd", "optimizer.lr=0.2", "scheduler.warmup=0.4")
    plain, slow = (trainer(f"algorithm={name}", *settings) for name in ("localsgd", "slowmo"))
    start = slow.state.model.clone()
    for run in (plain, slow):
        run.run_round()
    (velocity,) = [value for value in slow.state.server.values() if value.shape == start.shape]
    assert_exact(velocity * float(0.2 * np.mean(np.arange(1, 9) / 20)), start - plain.state.model)
    plan = plan_round(
        trainer("algorithm=slowmo", "K=4", "J=8", "batch_size=8", "samples=85", "optimizer.lr=0.2", "scheduler=constant").sole_run
    )
    assert plan.steps == 3 and plan.mean_rate == pytest.approx(0.2)
    assert plan.rates[:, 2].tolist() == pytest.approx([0.2 * 6 / 8, *[0.2 * 5 / 8] * 3])
    constant, changing, single = (
        describe(experiment("algorithm=slowmo", "K=4", "rounds=10", "scheduler=constant", *more)).get("revisions")
        for more in ((), ("scheduler=cosine",), ("scheduler=cosine", "J=1"))
    )
    assert (constant, changing, single) == (None, {"mean_rate": 2}, None)


@pytest.mark.parametrize("engine", ["loop", "stacked"])
def test_local_sgd_with_one_step_is_one_worker_with_the_batches_together(engine: str) -> None:
    algorithm = RecordingLocalSGD()
    run = trainer("algorithm=localsgd", "K=4", "J=1", "rounds=6", "precision=fp64", "batch_size=8", engine=engine, algorithm=algorithm)
    module = module_of(run)
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0, momentum=0.9, weight_decay=1e-3)
    while not run.finished:
        algorithm.seen.clear()
        run.run_round()
        inputs = torch.cat([inputs.flatten(0, 1) for inputs, _, _ in algorithm.seen])
        targets = torch.cat([targets.flatten() for _, targets, _ in algorithm.seen])
        assert len(targets) == 32
        optimizer.param_groups[0]["lr"] = run.sole_run.lr
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(inputs), targets).backward()
        optimizer.step()
        assert_exact(run.state.model[0], weights_of(module, run))


def test_fedavg_with_all_clients_and_one_step_is_fedsgd() -> None:
    algorithm = RecordingFedAvg()
    run = trainer("algorithm=fedavg", "K=8", "C=1", "J=1", "rounds=4", "precision=fp64", "optimizer.weight_decay=0", algorithm=algorithm)
    assert len(set(run.sole_run.shard_sizes.tolist())) == 2, "the weights should differ"
    while not run.finished:
        module = module_of(run)
        algorithm.seen.clear()
        run.run_round()
        share = run.sole_run.shard_sizes / run.sole_run.shard_sizes.sum()
        losses = [
            share[k] * nn.functional.cross_entropy(module(inputs[0]), targets[0]) for k, (inputs, targets) in enumerate(algorithm.seen)
        ]
        torch.stack(losses).sum().backward()
        gradient = run.group.layout.flat(parameter.grad for parameter in module.parameters() if parameter.grad is not None)
        assert_exact(run.state.model[0], weights_of(module, run) - 0.1 * gradient)


def server(rule: Outer, rate: float = 0.1) -> Server:
    """The outer optimizer of one run of one parameter."""
    one = torch.ones(1, 1, dtype=torch.float64)
    return Server(rule, {name: one * value for name, value in rule.hyper.items()}, one * rule.lr, one * rate, Layers((1,), (True,)))


def quadratic_rounds(algorithm: Algorithm, J: int, rounds: int, x: float = 0.3) -> float:
    """Run a method on the two clients f_k(x) = a_k / 2 (x - b_k)^2 with a = (1, 3), b = (0, 1) and rate 0.1."""
    a, b = torch.tensor([[1.0], [3.0]], dtype=torch.float64), torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    weights = torch.full((2,), 0.5, dtype=torch.float64)
    clients = Clients(np.arange(2), weights, {}, Fabric(True, 2, 2, Traffic()), server(OuterSGD()))
    state = algorithm.initial(torch.tensor([[x]], dtype=torch.float64), 2)
    lr = torch.full((2, J), 0.1, dtype=torch.float64)
    optimizer = SGDM(momentum=0.0)
    hyper = {name: torch.full((2, 1), value, dtype=torch.float64) for name, value in optimizer.hyper.items()}
    batch = Batch(torch.empty(2, 0), torch.empty(2, 0), None, torch.zeros(2, 2), np.zeros(2, np.int64), np.zeros(2, np.int64))
    for _ in range(rounds):
        starts = algorithm.start(state, clients)
        rows = Rows(starts.clone(), starts, {}, hyper, lr, optimizer, Layers((1,), (True,)))
        for j in range(J):
            algorithm.step(rows, lambda parameters, _: a * (parameters - b), [batch] * algorithm.batches_per_step, j)
        algorithm.update(state, clients, starts, rows.parameters)
    return float(state.model)


@pytest.mark.parametrize("algorithm", [FedAvg(), LocalSGD()], ids=lambda algorithm: algorithm.name)
@pytest.mark.parametrize(("J", "fixed_point"), [(1, 0.75), (2, 0.728571), (8, 0.623296), (400, 0.5)])
def test_fixed_point_of_heterogeneous_quadratics(algorithm: Algorithm, J: int, fixed_point: float) -> None:
    """x* = sum (1 - r_k^J) b_k / sum (1 - r_k^J) with r_k = 1 - lr a_k: the bias of local steps, which no averaging removes."""
    assert quadratic_rounds(algorithm, J, rounds=400) == pytest.approx(fixed_point, abs=1e-6)


@pytest.mark.parametrize("K", [2, 4, 8])
@pytest.mark.parametrize("J", [4, 8, 16, 32, 64])
def test_every_point_of_the_grid_processes_the_same_samples(K: int, J: int) -> None:
    run = trainer("algorithm=localsgd", f"K={K}", f"J={J}", "epochs=1.7", "model.filters=1", "model.hidden=1", "batch_size=16")
    while not run.finished:
        run.run_round()
    assert run.sole_run.samples == round(1.7 * 1295)
    assert run.sole_run.computed == run.sole_run.samples
    assert int(run.sole_run.cursors.sum()) == run.sole_run.samples
    assert run.sole_run.cursors.max() - run.sole_run.cursors.min() <= 1, "the last round is spread over the rows"
    assert run.sole_run.round == run.sole_run.experiment.rounds


def test_rounds_means_exactly_that_many() -> None:
    run = trainer("algorithm=fedavg", "K=10", "C=0.5", "J=3", "rounds=5", "batch_size=8")
    while not run.finished:
        run.run_round()
    assert run.sole_run.round == 5
    assert run.sole_run.samples == 5 * 5 * 3 * 8


def test_identical_clients_average_to_one_of_them() -> None:
    """With one shard for all, full batches and equal starts, every client's end is the same, and so is the average."""

    @dataclass
    class Same(FedAvg):
        needs_ends: ClassVar[bool] = True

        def update(self, state, clients, starts, ends):  # type: ignore[no-untyped-def]
            assert_exact(ends, ends[:1].expand_as(ends))
            super().update(state, clients, starts, ends)

    run = trainer("algorithm=fedavg", "K=3", "C=1", "J=2", "rounds=1", "precision=fp64", "dataset.crop=0", "batch_size=5", algorithm=Same())
    run.sole_run.sampler.indices = lambda client, cursor, count: np.arange(count) % 5  # type: ignore[method-assign]
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
        alone.sole_run.experiment.participation.cohort = lambda _, cohort=cohort: cohort  # type: ignore
        alone.run_round()
        assert_exact(alone.state.model[0], together.ends[k])


def test_mean_taken_as_rows_come_in_is_the_mean_of_all_ends() -> None:
    streamed, whole = trainer(*COHORT), trainer(*COHORT, algorithm=Keeping())
    for run in (streamed, whole):
        while not run.finished:
            run.run_round()
    assert_exact(streamed.state.model, whole.state.model)
    assert streamed.sole_run.traffic == whole.sole_run.traffic


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
    assert threaded.sole_run.computed == alone.sole_run.computed


def test_momentum_outlives_a_round_for_workers_and_not_for_clients() -> None:
    workers = trainer("algorithm=localsgd", "K=2", "J=2", "rounds=3")
    workers.run_round()
    kept = workers.group.buffers.client_slots["momentum"]
    assert kept.abs().sum() > 0
    clients = trainer("algorithm=fedavg", "K=4", "C=0.5", "J=2", "rounds=3", "optimizer.momentum=0.9")
    clients.run_round()
    assert clients.group.buffers.client_slots == {}


def test_centralized_round_is_one_pass() -> None:
    e = experiment("epochs=40", "batch_size=64")
    assert (e.K, e.m, e.J, e.rounds) == (1, 1, None, 40)
    run = trainer("epochs=40", "model.filters=1", "model.hidden=1")
    for epoch in range(1, 41):
        run.run_round()
        assert 0 <= run.sole_run.samples - epoch * 1295 < 64 or run.finished
    assert run.finished
    assert run.sole_run.samples == 40 * 1295
    assert run.sole_run.experiment.budget == experiment("rounds=40").budget


def test_without_a_validation_set_there_are_no_validation_figures() -> None:
    run = trainer("epochs=1", "dataset.validation=0", "dataset.flip=true")
    run.run_round()
    (row,) = run.evaluate()
    assert (row["val/loss"], row["val/acc"]) == (None, None)
    assert row["test/acc"] is not None


def test_traffic_is_counted() -> None:
    run = trainer("algorithm=fedavg", "K=10", "C=0.3", "J=1", "rounds=2", "batch_size=4")
    run.run_round()
    run.run_round()
    payload = run.group.layout.size * 4
    traffic = run.sole_run.traffic
    assert (traffic.bytes_down, traffic.bytes_up, traffic.messages) == (2 * 3 * payload, 2 * 3 * payload, 2 * 3 * 2)
    alone = trainer("epochs=1")
    alone.run_round()
    assert alone.sole_run.traffic.bytes_up == alone.sole_run.traffic.bytes_down == alone.sole_run.traffic.messages == 0
