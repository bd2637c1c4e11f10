"""Small models with BatchNorm, dropout and frozen parameters."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fl_hydra.data.dataset import DatasetInfo
from fl_hydra.models.base import Model
from fl_hydra.seams.rows import CALLS, METER_WIDTH, Batch
from fl_hydra.training.trainer import Trainer
from tests.support.make import trainer


@dataclass
class Layered(Model):
    """A convolution, and a linear layer. norm: BatchNorm after each of the two. dropout: a probability. frozen: whether a random linear
    layer and random noise that is added follow, which are not trained."""

    name: str = "layered"
    norm: bool = True
    dropout: float = 0.0
    frozen: bool = False

    def build(self, info: DatasetInfo) -> nn.Module:
        channels = info.shape[0]
        # Before a BatchNorm a bias has no gradient but rounding errors, of which adaptive rules make whole steps.
        parts: list[nn.Module] = [
            nn.Conv2d(channels, 3, 5, stride=3, bias=not self.norm),
            *([nn.BatchNorm2d(3, momentum=0.3)] if self.norm else []),
        ]
        parts += [nn.ReLU(), nn.Dropout2d(self.dropout), nn.Flatten(), nn.Linear(48, 8, bias=not self.norm)]
        parts += [*([nn.BatchNorm1d(8)] if self.norm else []), nn.ReLU(), nn.Dropout(self.dropout)]
        if self.frozen:
            parts += [nn.Linear(8, 8).requires_grad_(False), Noise()]
        return nn.Sequential(*parts, nn.Linear(8, info.classes))


@dataclass
class Grouped(Model):
    """A convolution, GroupNorm, and a linear layer: normalisation without running statistics."""

    name: str = "grouped"

    def build(self, info: DatasetInfo) -> nn.Module:
        convolution = nn.Conv2d(info.shape[0], 4, 5, stride=3)
        return nn.Sequential(convolution, nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(64, info.classes))


class Noise(nn.Module):
    """Adds what it has drawn when it was made."""

    noise: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("noise", torch.randn(8))
        self.register_buffer("whole", torch.arange(8))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + self.noise


FEDAVG = ("algorithm=fedavg", "K=8", "C=0.5", "J=3", "batch_size=6", "precision=fp64", "samples=300", "optimizer=sgdm")
"""Four rounds and a cut one."""


def layered(
    *words: str, engine: str = "stacked", norm: bool = True, dropout: float = 0.0, frozen: bool = False, **parts: object
) -> Trainer:
    return trainer(*words, engine=engine, model=Layered(norm=norm, dropout=dropout, frozen=frozen), **parts)


def batch_of(run: Trainer, which: Tensor, weights: Tensor | None = None, draws: Tensor | None = None, row: int = 0) -> Batch:
    """A batch of some training samples for each row, int64 [rows, B], as they are."""
    rows = len(which)
    inputs = run.split.train.plain(which.flatten())
    statistics = run.state.buffers.get("model")
    return Batch(
        inputs.view(*which.shape, *inputs.shape[1:]),
        run.split.train.targets[which],
        weights,
        torch.zeros(rows, METER_WIDTH, dtype=run.group.dtype),
        np.full(rows, which.shape[1]),
        np.zeros((rows, len(CALLS)), np.int64),
        draws=draws,
        statistics=None if statistics is None else statistics.repeat(rows, 1),
        frozen=run.state.buffers["frozen"][0] if "frozen" in run.state.buffers else None,
    )


def torch_module(run: Trainer, model: Tensor | None = None, statistics: Tensor | None = None) -> nn.Module:
    """An ordinary module with the trainer's present weights and buffers, or with others [P] and [size], in training mode."""
    module = run.group.architecture.build().double()
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    whole = run.group.whole(run.state.model if model is None else model[None], run.state, None if statistics is None else statistics[None])
    with torch.no_grad():
        for name, view in run.group.layout.whole_views(whole[0]).items():
            tensors[name].copy_(view)
    return module.train()


def statistics_of(module: nn.Module, run: Trainer) -> Tensor:
    tensors = dict(module.named_buffers())
    return torch.cat([tensors[name] for name in run.group.layout.statistics.names])


def gradient_of(module: nn.Module, run: Trainer) -> Tensor:
    named = dict(module.named_parameters())
    return run.group.layout.flat(named[name].grad for name in run.group.layout.names)  # type: ignore[misc]
