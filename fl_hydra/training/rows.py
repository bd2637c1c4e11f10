"""What an algorithm handles: rows of local workers, their batches, and the clients behind them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fl_hydra.arrays import Indices
from fl_hydra.optim.base import Layers, Optimizer
from fl_hydra.optim.outer import Outer
from fl_hydra.training.fabric import Fabric

METER_WIDTH = 3
"""What a meter counts: summed loss, correct predictions, targets."""


@dataclass
class Batch:
    """One batch for each row.

    inputs: [rows, B, channels, height, width], or characters [rows, B, positions]. targets: int64 [rows, B], or [rows, B, positions]
    where every position has one; negative where there is none.
    weights: 1 where a sample counts and 0 where it pads, [rows, B]; None where all count.
    meter: [rows, 3], to which the first gradient of this batch adds its summed loss, its correct predictions and its targets.
    counts: how many samples count in each row; int64 [rows], on the host.
    gradient_calls: how often the gradient was asked for; int64 [rows], on the host, counted up in place.
    """

    inputs: Tensor
    targets: Tensor
    weights: Tensor | None
    meter: Tensor
    counts: Indices
    gradient_calls: Indices

    def rows(self, part: slice) -> Batch:
        """The batches of some of the rows."""
        weights = None if self.weights is None else self.weights[part]
        return Batch(self.inputs[part], self.targets[part], weights, self.meter[part], self.counts[part], self.gradient_calls[part])

    def samples(self, part: slice) -> Batch:
        """Some samples of every row's batch, with the meter and the counts of the whole."""
        weights = None if self.weights is None else self.weights[:, part]
        return Batch(self.inputs[:, part], self.targets[:, part], weights, self.meter, self.counts, self.gradient_calls)


Gradient = Callable[[Tensor, Batch], Tensor]
"""Supplied by the engine: (parameters [rows, P], batch) -> the gradient [rows, P] of each row's mean loss. It may be
overwritten, and is valid until the next call: clone it to keep it longer."""


@dataclass
class Rows:
    """Local workers in training, one row each. Rows are copied into, never rebound.

    parameters, starts: [rows, P]. slots: state by name, [rows, P] or [rows, 1]. hyper: by name, [rows, 1]. lr: [rows, J].
    """

    parameters: Tensor
    starts: Tensor
    slots: dict[str, Tensor]
    hyper: dict[str, Tensor]
    lr: Tensor
    optimizer: Optimizer
    layers: Layers

    def descend(self, gradient: Tensor, j: int) -> None:
        """Step j of the local optimizer along `gradient` [rows, P], which may be overwritten."""
        self.optimizer.step(self.parameters, gradient, self.slots, self.hyper, self.lr[:, j : j + 1], self.layers)


@dataclass
class Server:
    """The outer optimizer of a run.

    hyper: by name, [1, 1]. lr: [1, 1], its own learning rate. local_lr: [1, 1], the mean of the schedule's local rates over the round's
    steps.
    """

    outer: Outer
    hyper: dict[str, Tensor]
    lr: Tensor
    local_lr: Tensor
    layers: Layers

    def step(self, models: Tensor, slots: dict[str, Tensor], mean: Tensor) -> None:
        """The outer step from models [1, P] towards the mean [1, P] of what came back, in place.

        The pseudo-gradient is old minus new (Reddi et al., ICLR 2021, algorithm 1).
        """
        if self.outer.averages:
            models.copy_(mean)
            return
        difference, lr = models - mean, self.lr
        if self.outer.divides_by_rate:
            # A rate may be 0 in the models' precision; nothing has moved then.
            rate = self.local_lr.clamp(min=torch.finfo(self.local_lr.dtype).tiny)
            difference, lr = difference / rate, lr * rate
        self.outer.step(models, difference, slots, self.hyper, lr, self.layers)


@dataclass
class Clients:
    """The cohort of a run's round, as an algorithm sees it.

    ids: int64 [rows]. weights: [rows], 0 for those who drop out, summing to 1 unless the participation scheme weighs updates by itself
    (importance sampling); the rest is the old model's then.
    slots: state of these clients that outlives the round, by name. server: what takes the outer step.
    """

    ids: Indices
    weights: Tensor
    slots: dict[str, Tensor]
    fabric: Fabric
    server: Server

    def receive(self, models: Tensor) -> Tensor:
        """Each row's copy of the run's model: [1, P] -> [rows, P]. It may share the model's memory: not to be written to, and
        not to be read after the model was changed.
        """
        return self.fabric.broadcast(models)

    def mean(self, values: Tensor) -> Tensor:
        """The weighted mean: [rows, P] -> [1, P]."""
        return self.fabric.mean(values, self.weights)
