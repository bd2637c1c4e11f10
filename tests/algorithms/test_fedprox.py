"""FedProx: its limits, and that runs which differ in mu are rows of one training."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fl_hydra.algorithms.base import algorithms
from fl_hydra.runs.packing import shape
from fl_hydra.training.trainer import Trainer
from tests.support.make import config, experiment, inner, kind, trainer
from tests.support.packs import SHAPES, assert_same, train
from tests.support.quadratics import Quadratics

SMALL = ("K=10", "C=0.3", "J=3", "precision=fp64", "samples=700", "batch_size=16")


def test_without_mu_it_is_fedavg() -> None:
    one, other = trainer("algorithm=fedavg", *SMALL), trainer("algorithm=fedprox", "algorithm.mu=0", *SMALL)
    for run in (one, other):
        run.run_round()
    assert torch.equal(one.state.model, other.state.model)


@pytest.mark.parametrize("mu", [0.5, 2.0])
def test_its_limit_on_quadratics(mu: float) -> None:
    """Clients that come to their minimum, (a_k b_k + mu x) / (a_k + mu), have x* = sum q_k b_k / sum q_k, q_k = a_k / (a_k + mu)."""
    made = Quadratics("algorithm=fedprox", f"algorithm.mu={mu}", "C=1", "J=100")
    q = [a / (a + mu) for a in (1.0, 3.0)]
    assert made.rounds(40)[-1] == pytest.approx(q[1] / sum(q), abs=1e-4)


class Untouchable:
    """A hyper-parameter that a method reads from itself, where rows of other runs have another."""

    def _raise(self, *_: Any) -> Any:
        raise AssertionError("a step reads a hyper-parameter of its own; it is in rows.hyper or clients.hyper")

    __add__ = __radd__ = __mul__ = __rmul__ = __sub__ = __rsub__ = __truediv__ = __rtruediv__ = __float__ = __bool__ = __eq__ = _raise
    __lt__ = __gt__ = __le__ = __ge__ = __neg__ = __pow__ = _raise
    __hash__ = None  # type: ignore[assignment]


@pytest.mark.parametrize("algorithm", [name for name in algorithms if algorithms[name].hyper])
def test_numbers_of_a_method_are_read_by_row(algorithm: str) -> None:
    run = trainer(f"algorithm={algorithm}", f"optimizer={inner(algorithm)}", *SHAPES[kind(algorithm)], "samples=700")
    for name in algorithms[algorithm].hyper:
        setattr(run.sole_run.experiment.algorithm, name, Untouchable())
    while not run.finished:
        run.run_round()


def test_runs_that_differ_in_mu_train_together() -> None:
    settings = [("algorithm=fedprox", f"algorithm.mu={mu}", *SMALL) for mu in (0.0, 0.01, 1.0)]
    assert len({shape(config(*s), experiment(*s)) for s in settings}) == 1
    together = train(Trainer(*(experiment(*s) for s in settings), engine="stacked"))
    assert len({row["train/loss"] for row in together}) == 3
    for one, s in zip(together, settings, strict=True):
        (alone,) = train(trainer(*s, engine="stacked"))
        assert_same(one, alone)
