"""Trainers of a small network, and of the same rows on quadratics, where gradients are known."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from fl_hydra.seams.rows import Batch
from fl_hydra.training.experiment import Experiment
from fl_hydra.training.trainer import Trainer
from tests.support.make import experiment

TINY = ("precision=fp64", "model.filters=2", "model.hidden=4", "batch_size=4")
PLAIN = ("optimizer=sgd", "optimizer.weight_decay=0", "scheduler=constant")


@cache
def composed(*overrides: str) -> Experiment:
    """Composing takes longer than most of the training here, and settings repeat themselves."""
    return experiment(*TINY, *overrides)


def small(*overrides: str, engine: str = "loop", **parts: Any) -> Trainer:
    """A trainer of a small network; `parts` replace fields of its experiment."""
    return Trainer(replace(composed(*overrides), **parts), engine=engine)


def finish(run: Trainer) -> Trainer:
    while not run.finished:
        run.run_round()
    return run


def trained(*overrides: str, **parts: Any) -> Trainer:
    """A small network after its training on the digits."""
    return finish(small(*overrides, **parts))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


def on_quadratics(*overrides: str, a: Tensor, b: Tensor | None = None, noisy: bool = False, **parts: Any) -> tuple[Trainer, Tensor]:
    """A trainer whose row k descends f_k(x) = a_k / 2 |x - b_k|^2, a [K, 1], b [K, P], from x = 0; and b, random by default.

    noisy: every sample pulls in a direction of its label, so that a row's gradient depends on its batch, but not on x.
    """
    run = small(*overrides, engine="stacked", **parts)
    goals = normal(len(a), run.group.layout.size) if b is None else b
    pulls = normal(10, run.group.layout.size, seed=1) * noisy

    def gradient(parameters: Tensor, batch: Batch) -> Tensor:
        answer: Tensor = a * (parameters - goals) + pulls[batch.targets].mean(1)
        return answer

    run.group.engine.gradient = gradient  # type: ignore[method-assign, assignment]
    run.state.model.zero_()
    return run, goals


def rates(run: Trainer) -> list[float]:
    """The learning rate of every local step of a run whose rounds are whole and alike."""
    e = run.sole_run.experiment
    together = e.K * e.batch_size
    return [e.peak_lr * e.scheduler.factor(before, together, e.budget) for before in range(0, e.budget, together)]


HETEROGENEOUS = column(1.0, 3.0)


def steps_of_rounds(run: Trainer) -> list[int]:
    """Local steps of each round of a run, which is trained."""
    steps = [0]
    while not run.finished:
        run.run_round()
        steps.append(run.sole_run.traffic.steps)
    return [after - before for before, after in pairwise(steps)]
