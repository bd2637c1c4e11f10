"""What a local step works on: rows of parameters, their batches, and gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from fl_hydra.arrays import Indices
from fl_hydra.optim.base import Layers, Optimizer
from fl_hydra.seams.architectures import Architectures
from fl_hydra.seams.layout import Columns

METER_WIDTH = 3
"""What a meter counts: summed loss, correct predictions, targets."""

CALLS = GRADIENTS, OUTPUTS, PRODUCTS = range(3)
"""What can be computed for a batch: its gradient, its outputs, or a product with the Hessian."""


@dataclass
class Batch:
    """One batch for each row.

    inputs: [rows, B, channels, height, width], or characters [rows, B, positions]. targets: int64 [rows, B], or [rows, B, positions]
    if every position has one; negative where there is none.
    weights: 1 for samples and 0 for padding, [rows, B]; None without padding.
    meter: [rows, 3], to which the metered gradient of this batch adds its summed loss, its correct predictions and its targets.
    counts: samples of each row without padding; int64 [rows], on the host.
    calls: how often each of :data:`CALLS` was computed; int64 [rows, 3], on the host, counted up in place.
    """

    inputs: Tensor
    targets: Tensor
    weights: Tensor | None
    meter: Tensor
    counts: Indices
    calls: Indices
    metered: bool = False
    """Whether a gradient of this batch has been metered."""
    draws: Tensor | None = None
    """The number that identifies each sample's draws in random layers, int64 [rows, B]; None without such layers."""
    statistics: Tensor | None = None
    """The running statistics of each row's model, [rows, size], which the metered gradient updates; None if there are none."""
    frozen: Tensor | None = None
    """Frozen tensors of the model, shared by all these rows, [size]; None if there are none."""
    training: bool = True
    """Whether gradients are taken in training mode; in evaluation mode there is no dropout, and running statistics are used."""
    fixed: bool = False
    """Whether running statistics are used in training mode too, and stay as they are."""

    def rows(self, part: slice) -> Batch:
        """The batches of some of the rows."""
        weights, draws, statistics = (None if each is None else each[part] for each in (self.weights, self.draws, self.statistics))
        return Batch(
            self.inputs[part],
            self.targets[part],
            weights,
            self.meter[part],
            self.counts[part],
            self.calls[part],
            draws=draws,
            statistics=statistics,
            frozen=self.frozen,
            training=self.training,
            fixed=self.fixed,
        )

    def samples(self, part: slice) -> Batch:
        """Some samples of every row's batch, with the meter, counts and statistics of the whole batch."""
        weights, draws = (None if each is None else each[:, part] for each in (self.weights, self.draws))
        return Batch(
            self.inputs[:, part],
            self.targets[:, part],
            weights,
            self.meter,
            self.counts,
            self.calls,
            draws=draws,
            statistics=self.statistics,
            frozen=self.frozen,
            training=self.training,
            fixed=self.fixed,
        )

    @property
    def beside(self) -> dict[str, Tensor]:
        """Inputs of the model besides parameters and samples, by name: those of `draws`, `statistics` and `frozen` that exist."""
        named = {"draws": self.draws, "statistics": self.statistics, "frozen": self.frozen}
        return {name: tensor for name, tensor in named.items() if tensor is not None}


@dataclass
class Outputs:
    """A model's outputs for a batch.

    logits: [..., B, classes], or [..., B, positions, classes] if every position has a target. features: [..., B, width] (or
    [..., B, positions, width]), the input of the last linear layer; of width 0 if the model has none.
    """

    logits: Tensor
    features: Tensor


class Loss(Protocol):
    """A loss of one row's batch, differentiable.

    It takes the outputs of one row, its targets, int64 [B] or [B, positions], and further inputs by name, and returns the loss of each
    target, in the shape of `targets`; its caller leaves out padding and takes the mean. A loss of a whole batch (`whole=True`) also takes
    `weights`, [B] or None, and returns one number. It runs under `torch.func.vmap`, so it must not read values back to the host.
    """

    def __call__(self, outputs: Outputs, targets: Tensor, /, **inputs: Tensor) -> Tensor: ...


class Gradient(Protocol):
    """Supplied by the engine: computes for each row's batch, at any parameters, as often as it is called."""

    def __call__(
        self,
        parameters: Tensor,
        batch: Batch,
        loss: Loss | None = None,
        *,
        whole: bool = False,
        metered: bool = True,
        samples: Mapping[str, Tensor] | None = None,
        **inputs: Tensor,
    ) -> Tensor:
        """The gradient [rows, P] of each row's mean loss. It may be overwritten, and is valid until the next call: clone it to keep it.

        Args:
            parameters: [rows, P].
            batch: of each row.
            loss: cross-entropy if None.
            whole: whether `loss` is of a whole batch, which is then never split.
            metered: whether training curves and the noise scale use this gradient. Exactly one gradient of each batch should be metered,
                at the rows' own parameters.
            samples: further inputs of the loss by name, [rows, B, ...], one for each sample.
            inputs: further inputs of the loss by name, [rows, ...].

        Raises:
            TypeError: a gradient of this batch was already metered.
        """
        ...

    def outputs(self, parameters: Tensor, batch: Batch) -> Outputs:
        """Logits and features of each row, detached; a forward pass in evaluation mode, without dropout and with running statistics."""
        ...

    def product(
        self,
        parameters: Tensor,
        vectors: Tensor,
        batch: Batch,
        loss: Loss | None = None,
        *,
        whole: bool = False,
        samples: Mapping[str, Tensor] | None = None,
        **inputs: Tensor,
    ) -> Tensor:
        """The Hessian of each row's mean loss times a vector, [rows, P] -> [rows, P], exactly (reverse over reverse)."""
        ...


SimpleGradient = Callable[[Tensor, Batch], Tensor]
"""A metered gradient of the cross-entropy."""


@dataclass
class LocalOptimizer:
    """The local optimizer of some rows.

    hyper: by name, [rows, 1]. slots: for each vector that it steps, its state by name, [rows, width]; the vectors are "" (the
    parameters) and others by the names that the method declares. columns: named sets of columns that are stepped separately.
    """

    rule: Optimizer
    layers: Layers
    hyper: dict[str, Tensor]
    slots: dict[str, dict[str, Tensor]]
    columns: dict[str, Columns] = field(default_factory=dict)
    stepped: dict[str, Columns] = field(default_factory=dict)
    """The parameters that other vectors stand for, by name; all, if they are not named."""


@dataclass
class Rows:
    """Local workers in training, one row each. Tensors are written in place, never rebound.

    parameters, starts: [rows, P]. lr: [rows, J or more], the rates of this round's steps.
    state: the method's `client_state` of each row's client, by name, [rows, width]; it outlives the round.
    received: what the server sent besides the model (`send`), by name, [rows, width]; read-only.
    facts: what is known of each row's client, by name (`row_facts`), [rows, width]: its `sizes` and `label_counts`, and `rates`, the sum of
    its learning rates in this round.
    hyper: the method's own hyper-parameters (`hyper`), by name, [rows, 1].
    architectures: of all of the run's clients.
    J: local steps of the round as the rule chose them, on the host, for methods that declare `reads_J`; a cut round has fewer.
    """

    parameters: Tensor
    starts: Tensor
    lr: Tensor
    optimizer: LocalOptimizer
    state: dict[str, Tensor] = field(default_factory=dict)
    received: dict[str, Tensor] = field(default_factory=dict)
    facts: dict[str, Tensor] = field(default_factory=dict)
    hyper: dict[str, Tensor] = field(default_factory=dict)
    J: int = 0
    architectures: Architectures | None = None

    def descend(
        self, gradient: Tensor, j: int, *, columns: str | None = None, lr: Tensor | float | None = None, of: str | None = None
    ) -> None:
        """Step j of the local optimizer along `gradient` [rows, P], which may be overwritten.

        Args:
            columns: the name of declared columns; only these are stepped, with their own step counters.
            lr: a rate in place of the schedule's, [rows, 1] or a number.
            of: the name of client state that is stepped in place of the parameters, with its own slots; `gradient` is as wide as it is.
        """
        local = self.optimizer
        vectors = self.parameters if of is None else self.state[of]
        slots = local.slots[of or ""]
        rate = self.lr[:, j : j + 1]
        if lr is not None:
            rate = lr if isinstance(lr, Tensor) else rate.new_full(rate.shape, lr)
        if columns is None:
            layers = local.stepped[of].layers if of in local.stepped else local.layers
            local.rule.step(vectors, gradient, slots, local.hyper, rate, layers)
            return
        where = local.columns[columns]
        # Views if the columns are contiguous, else copies that are written back.
        parts = {name: where.of(slots[name]) for name, width in local.rule.slots.items() if width == "row"}
        counters = {name: slots[counter(name, columns)] for name, width in local.rule.slots.items() if width == "scalar"}
        part = where.of(vectors)
        local.rule.step(part, where.of(gradient), parts | counters, local.hyper, rate, where.layers)
        for name, values in parts.items():
            where.write(slots[name], values)
        where.write(vectors, part)


def counter(name: str, columns: str) -> str:
    """The name of a scalar slot, such as a step counter, that belongs to some columns."""
    return f"{name}@{columns}"
