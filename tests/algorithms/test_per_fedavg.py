"""Per-FedAvg: its meta-gradient on paper, its limits, and what its batches are counted as."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fl_hydra.algorithms.fedavg import FedAvg
from fl_hydra.errors import UserError
from fl_hydra.runs.identity import run_hash
from fl_hydra.seams.layout import Layout
from fl_hydra.seams.rows import Batch, Gradient, Rows
from tests.support.make import experiment, trainer
from tests.support.quadratics import Quadratics

SMALL = ("K=6", "C=0.5", "J=3", "precision=fp64", "rounds=3", "batch_size=16", "model.filters=2", "model.hidden=4")
ORDERS = ("fo", "hvp", "hf")


@pytest.mark.parametrize(("order", "meta"), [("fo", 1.2), ("hvp", 0.48), ("hf", 0.48)])
def test_one_step_on_paper(order: str, meta: float) -> None:
    """f(w) = 3/2 (w - 1)^2 at w = 2: w' = 2 - 0.2 * 3 = 1.4 has the gradient 1.2, of which (1 - 0.2 * 3) remains."""
    made = Quadratics(
        "algorithm=per_fedavg", f"algorithm.order={order}", "algorithm.alpha=0.2", "C=1", "J=1", "optimizer.lr=0.5", a=(3,), b=(1,), start=2
    )
    assert made.rounds(1) == [pytest.approx(2 - 0.5 * meta, abs=1e-12)]


@pytest.mark.parametrize("order", ORDERS)
def test_without_adapting_it_is_fedavg(order: str) -> None:
    """Bit by bit, of gradients that no batch changes."""
    made, plain = (Quadratics(*words, "C=0.5", "J=3") for words in (_of(order, 0), ("algorithm=fedavg",)))
    assert made.rounds(5) == plain.rounds(5)


def _of(order: str, alpha: float) -> tuple[str, ...]:
    return "algorithm=per_fedavg", f"algorithm.order={order}", f"algorithm.alpha={alpha}"


@dataclass
class Every(FedAvg):
    """FedAvg that takes the first of so many batches."""

    batches: int = 2

    @property
    def batches_per_step(self) -> int:
        return self.batches

    def step(self, rows: Rows, gradient: Gradient, batches: Sequence[Batch], j: int) -> None:
        super().step(rows, gradient, batches, j)


@pytest.mark.parametrize("order", ORDERS)
def test_without_adapting_it_is_fedavg_on_the_first_of_its_batches(order: str) -> None:
    run = trainer(*_of(order, 0), *SMALL)
    budget = run.sole_run.experiment.budget
    plain = trainer("algorithm=fedavg", *SMALL, algorithm=Every(batches=2 + (order != "fo")), budget=budget)
    while not run.finished:
        run.run_round()
        plain.run_round()
    assert torch.equal(run.state.model, plain.state.model) and plain.finished


def test_finite_differences_come_to_the_product() -> None:
    """Of a smooth model central differences are off by delta^2; where a rectifier bends, by delta."""
    exact, *others = (
        trainer(*_of(order, 0.5), *SMALL, f"algorithm.delta={delta}") for order, delta in (("hvp", 1), ("hf", 1e-2), ("hf", 1e-5))
    )
    for run in (exact, *others):
        run.run_round()
    rough, fine = (float((run.state.model - exact.state.model).abs().max()) for run in others)
    plain = trainer(*_of("fo", 0.5), *SMALL)
    plain.run_round()
    assert fine < 1e-7 < 1e-3 < float((plain.state.model - exact.state.model).abs().max()) and fine < rough / 10


@pytest.mark.parametrize(("order", "batches", "gradients", "products"), [("fo", 2, 2, 0), ("hvp", 3, 2, 1), ("hf", 3, 4, 0)])
def test_every_batch_counts_once_and_every_gradient_costs(order: str, batches: int, gradients: int, products: int) -> None:
    runs = [trainer(*_of(order, 0.1), *SMALL, engine=engine) for engine in ("loop", "stacked")]
    for run in runs:
        while not run.finished:
            run.run_round()
    torch.testing.assert_close(runs[0].state.model, runs[1].state.model, rtol=1e-11, atol=1e-11)
    one = 3 * 3 * 3 * 16  # rounds, rows, steps, batch
    part = runs[0].sole_run
    assert (part.samples, part.computed, part.products) == (one * batches, one * gradients, one * products)
    method = part.experiment.algorithm
    assert method.gradients_per_batch * batches == pytest.approx(gradients + 2 * products)
    assert int(part.cursors.sum()) == part.samples


@pytest.mark.parametrize("order", ORDERS)
def test_a_step_with_samples_for_one_batch_is_fedavgs(order: str) -> None:
    words = ("K=2", "C=0.5", "J=1", "precision=fp64", "batch_size=16", "samples=10", "optimizer=sgd", "optimizer.weight_decay=0")
    run, plain = trainer(*_of(order, 0.5), *words), trainer("algorithm=fedavg", *words)
    before = run.state.model.clone()
    run.run_round()
    plain.run_round()
    batches = 2 if order == "fo" else 3
    torch.testing.assert_close((run.state.model - before) * batches, plain.state.model - before, rtol=1e-12, atol=1e-15)


def test_the_noise_scale_is_of_gradients_where_all_clients_begin() -> None:
    """Of D, at w. A last round with samples for a part of D is left out."""
    words = ("noise_scale=true", "K=2", "C=1", "J=1", "precision=fp64", "batch_size=16", "samples=108", "model.filters=2")
    run = trainer(*_of("fo", 0.5), *words, engine="stacked")
    run.run_round()
    noise = run.measurements.noise
    assert noise is not None and run.sole_run.samples == 64
    once = noise.averages.clone()
    assert once.isfinite().all() and once.abs().min() > 0
    run.run_round()
    assert run.finished and torch.equal(noise.averages, once)


def test_a_number_without_effect_is_in_no_name() -> None:
    def name(*words: str) -> str:
        return run_hash(experiment("algorithm=per_fedavg", *words))

    assert name() == name("algorithm.delta=0.1") != name("algorithm.order=hf") != name("algorithm.order=hf", "algorithm.delta=0.1")


def test_clients_adapt_before_they_are_judged() -> None:
    run = trainer(*_of("fo", 0.1), *SMALL, "algorithm.ft_steps=2")
    run.run_round()
    clients = run.cohorts.uncharged(run.sole_run, 0, np.arange(6), run.state)
    adapted = run.groups[0].personal.models(run.sole_run, run.state, clients)
    assert torch.equal(adapted, clients.tune(run.state.model.repeat(6, 1), 2, 0.1))
    assert not torch.equal(adapted[0], adapted[1])
    line = run.evaluate()[0]
    assert line["val/acc"] is not None and line["personal/val/acc"] is not None


def test_products_of_recurrent_layers_do_without_cudnn(monkeypatch: pytest.MonkeyPatch) -> None:
    run = trainer(*_of("hvp", 0.1), *SMALL)
    engine, seen = run.group.engine, list[bool]()
    product = engine._product

    def watched(*arguments: Any) -> Tensor:
        seen.append(torch.backends.cudnn.enabled)
        return product(*arguments)

    monkeypatch.setattr(engine, "_product", watched)
    run.run_round()
    monkeypatch.setattr(Layout, "recurrent", True)
    run.run_round()
    assert seen == [True] * 9 + [False] * 9 and torch.backends.cudnn.enabled


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("order=second", "algorithm.order=second: choose fo, hvp or hf"),
        ("delta=0", "algorithm.delta=0: the two gradients"),
        ("alpha=-1", "algorithm.alpha=-1.0: must be 0 or more"),
    ],
)
def test_what_makes_no_sense_is_refused(word: str, line: str) -> None:
    with pytest.raises(UserError, match=line):
        experiment("algorithm=per_fedavg", f"algorithm.{word}")
