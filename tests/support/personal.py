"""Runs whose clients keep parameters of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fl_hydra.seams.rows import GRADIENTS, Batch
from fl_hydra.training.trainer import Trainer
from tests.support.make import trainer
from tests.support.quadratics import Quadratics

SMALL = ("K=6", "C=0.5", "J=4", "precision=fp64", "samples=700", "batch_size=16", "sharding=classes", "N_c=3", "optimizer=sgdm")
"""Three rounds and a cut one, where rows of a round have samples for three steps and a part of the fourth."""


FIGURES = {
    "p/loss": 2,
    "p/acc": 0.5,
    "p/acc_weighted": 0.6,
    "p/acc_worst_tenth": 0.1,
    "p/acc_deviation": float(np.std([0.9, 0.5, 0.1])),
    "p/clients": 3,
}
"""Of three clients with losses 1, 2, 3, accuracies 0.9, 0.5, 0.1 and 2, 1, 1 samples."""

COUNTS = ("messages", "averages", "served")


def finished(*words: str, engine: str = "loop", **parts: Any) -> Trainer:
    """A trained run."""
    run = trainer(*words, engine=engine, **parts)
    while not run.finished:
        run.run_round()
    return run


def own(run: Trainer, name: str = "personal") -> Tensor:
    """What all clients keep, [K, width]."""
    return torch.as_tensor(run.sole_run.clients.read(np.arange(run.sole_run.experiment.K), name))


def assert_same(one: Trainer, other: Trainer) -> None:
    """Check that two runs end with the same models and figures, bit by bit; messages are counted even if they are empty."""
    for name, tensor in one.state.tensors().items():
        assert torch.equal(tensor, other.state.tensors()[name]), name
    lines = [{name: value for name, value in run.evaluate()[0].items() if name not in COUNTS} for run in (one, other)]
    assert lines[0] == lines[1]


class Coupled(Quadratics):
    """Clients whose loss is (v + u - b)^2 / 2, where v is the first personal and u the first shared parameter; all others are alike, and
    all begin at 0."""

    def __init__(self, *overrides: str, b: Sequence[float], **parts: Any) -> None:
        super().__init__(*overrides, a=(1,) * len(b), b=b, **parts)
        self.run.sole_run.clients._initial["personal"].zero_()

    def gradient(self, parameters: Tensor) -> Tensor:
        """At parameters [rows, P], of the clients of the cohort."""
        group = self.run.group
        v, u = (columns.of(parameters)[:, :1] for columns in (group.personal, group.shared))
        return (v + u - self._b[torch.from_numpy(self.ids)]).expand_as(parameters).clone()

    def _gradient(self, parameters: Tensor, batch: Batch, objective: Any = None, *, metered: bool = True) -> Tensor:
        batch.calls[:, GRADIENTS] += 1
        return self.gradient(parameters)

    def after(self, rounds: int) -> tuple[float, list[float]]:
        """u, and each client's v."""
        for _ in range(rounds):
            self.run.run_round()
        shared = self.run.group.shared.of(self.run.state.model)[0]
        assert (shared == shared[0]).all()
        return float(shared[0]), own(self.run)[:, 0].tolist()
