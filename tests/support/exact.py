"""Equality in float64, and the torch module of a trainer to compare with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fl_hydra.algorithms.localsgd import LocalSGD
from fl_hydra.training.rows import Batch, Gradient, Rows
from fl_hydra.training.trainer import Trainer


def assert_exact(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0.0, atol=1e-12)


@dataclass
class RecordingLocalSGD(LocalSGD):
    def __post_init__(self) -> None:
        self.seen: list[tuple[Tensor, Tensor, Tensor | None]] = []

    def step(self, rows: Rows, gradient: Gradient, batches: Sequence[Batch], j: int) -> None:
        self.seen.append((batches[0].inputs.clone(), batches[0].targets.clone(), batches[0].weights))
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
