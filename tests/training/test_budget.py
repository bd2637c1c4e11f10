"""Budgets of samples: spent exactly, and steps of a part of a batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import nn

from fl_hydra.algorithms.base import algorithms
from fl_hydra.algorithms.events import EventDriven
from fl_hydra.runs.identity import describe
from fl_hydra.seams.rows import Batch, Gradient, Rows
from tests.support.exact import RecordingLocalSGD, assert_exact, module_of
from tests.support.make import experiment, kind, suited, trainer

AWKWARD = {"centralized": ("samples=2605",), "localsgd": ("K=4", "J=3", "samples=1155"), "fedavg": ("K=10", "C=0.3", "J=3", "samples=380")}
"""Budgets that leave a part of a batch at the end, of other sizes to different rows."""


@pytest.mark.parametrize("more", [(), ("local_steps.spread=0.5",)], ids=["", "spread"])
@pytest.mark.parametrize("algorithm", list(algorithms))
def test_a_step_of_a_part_of_its_batches_takes_that_part_of_the_rate(algorithm: str, more: tuple[str, ...]) -> None:
    """b of B samples, b / B of the rate: of each row by itself, in every method. The rate of the metrics stays the schedule's."""
    method = algorithms[algorithm]
    if more and (method.J is None or issubclass(method, EventDriven) or method.lockstep or method.virtual_clients):
        return
    run = trainer(
        f"algorithm={algorithm}",
        *suited(algorithm),
        "batch_size=16",
        "optimizer=sgd",
        "optimizer.lr=0.25",
        "scheduler=constant",
        *AWKWARD[kind(algorithm)],
        *more,
    )
    trained = run.sole_run.experiment.algorithm
    original, parts = trained.step, list[float]()

    def step(rows: Rows, gradient: Gradient, batches: Sequence[Batch], j: int) -> None:
        b = np.array([batch.counts for batch in batches]).sum(0)
        assert rows.lr[:, j].tolist() == pytest.approx((0.25 * b / (16 * len(batches))).tolist(), rel=1e-6)
        parts.extend(b.tolist())
        original(rows, gradient, batches, j)

    trained.step = step  # type: ignore[method-assign]
    while not run.finished:
        run.run_round()
    assert sum(parts) == run.sole_run.samples == run.sole_run.experiment.budget
    assert any(0 < part < 16 * trained.batches_per_step for part in parts)
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
