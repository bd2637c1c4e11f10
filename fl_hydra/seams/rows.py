"""What a local step handles: rows of parameters, their batches, and gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from fl_hydra.arrays import Indices
from fl_hydra.optim.base import Layers, Optimizer
from fl_hydra.seams.layout import Columns

METER_WIDTH = 3
"""What a meter counts: summed loss, correct predictions, targets."""

CALLS = GRADIENTS, OUTPUTS, PRODUCTS = range(3)
"""What a batch may be computed for: its gradient, its outputs, or a product with the Hessian."""


@dataclass
class Batch:
    """One batch for each row.

    inputs: [rows, B, channels, height, width], or characters [rows, B, positions]. targets: int64 [rows, B], or [rows, B, positions]
    where every position has one; negative where there is none.
    weights: 1 where a sample counts and 0 where it pads, [rows, B]; None where all count.
    meter: [rows, 3], to which the metered gradient of this batch adds its summed loss, its correct predictions and its targets.
    counts: how many samples count in each row; int64 [rows], on the host.
    calls: how often each of :data:`CALLS` was asked for; int64 [rows, 3], on the host, counted up in place.
    """

    inputs: Tensor
    targets: Tensor
    weights: Tensor | None
    meter: Tensor
    counts: Indices
    calls: Indices
    metered: bool = False
    """Whether a gradient of it has been metered."""
    draws: Tensor | None = None
    """The number that names each sample's draws in random layers, int64 [rows, B]; None where no layer draws."""
    statistics: Tensor | None = None
    """The running statistics of each row's model, [rows, size], which the metered gradient updates; None where it has none."""
    frozen: Tensor | None = None
    """What is not trained of the model of all these rows, [size]; None where all of it is."""
    training: bool = True
    """Whether gradients are those of the model in training, or in evaluation: without dropout, with its running statistics."""

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
        )

    def samples(self, part: slice) -> Batch:
        """Some samples of every row's batch, with the meter, the counts and the statistics of the whole."""
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
        )

    @property
    def beside(self) -> dict[str, Tensor]:
        """What a pass of the model reads beside parameters and samples, by name: what there is of `draws`, `statistics`, `frozen`."""
        named = {"draws": self.draws, "statistics": self.statistics, "frozen": self.frozen}
        return {name: tensor for name, tensor in named.items() if tensor is not None}


@dataclass
class Outputs:
    """What a model makes of a batch.

    logits: [..., B, classes], or [..., B, positions, classes] where every position has a target. features: [..., B, width] (or
    [..., B, positions, width]), the input of the last linear layer; of no
    width where the model has none.
    """

    logits: Tensor
    features: Tensor


class Loss(Protocol):
    """A loss of one row's batch, differentiable.

    It is given the outputs of one row, its targets, int64 [B] or [B, positions], and further inputs by name, and returns the loss of each
    target, of the shape of `targets`: padding is left out, and the mean taken, by who calls it. A loss of a whole batch (`whole=True`)
    is also given `weights`, [B] or None, and returns one number. It runs under `torch.func.vmap`: no value may be read back.
    """

    def __call__(self, outputs: Outputs, targets: Tensor, /, **inputs: Tensor) -> Tensor: ...


class Gradient(Protocol):
    """Supplied by the engine: what can be computed of each row's batch, at any parameters, as often as it is asked for."""

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
            whole: whether `loss` is that of a whole batch, which is never divided.
            metered: whether this is the gradient of the batch from which training curves and the noise scale are made. Exactly one
                gradient of a batch should be, at the rows' own parameters.
            samples: further inputs of the loss by name, [rows, B, ...], one for each sample.
            inputs: further inputs of the loss by name, [rows, ...].

        Raises:
            TypeError: a second gradient of a batch is to be metered.
        """
        ...

    def outputs(self, parameters: Tensor, batch: Batch) -> Outputs:
        """Logits and features of each row, detached; a forward pass of models in evaluation: without dropout, with running statistics."""
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
"""A gradient of cross-entropy that is metered."""


@dataclass
class LocalOptimizer:
    """The local optimizer of some rows.

    hyper: by name, [rows, 1]. slots: its state by name, [rows, width], of each vector that it steps: "" for the parameters, and the names
    of others that the method declares. columns: named sets of columns that are stepped apart.
    """

    rule: Optimizer
    layers: Layers
    hyper: dict[str, Tensor]
    slots: dict[str, dict[str, Tensor]]
    columns: dict[str, Columns] = field(default_factory=dict)


@dataclass
class Rows:
    """Local workers in training, one row each. Rows are copied into, never rebound.

    parameters, starts: [rows, P]. lr: [rows, J or more], the rates of this round's steps.
    state: of each row's client, by the names that the method's `client_state` gives, [rows, width]; it outlives the round.
    received: what the server has sent beside the model (`send`), by name, [rows, width]; not to be written to.
    facts: what is fixed of each row's client, by name (`row_facts`), [rows, width]: `sizes` and `label_counts`.
    hyper: the method's own hyper-parameters (`hyper`), by name, [rows, 1].
    """

    parameters: Tensor
    starts: Tensor
    lr: Tensor
    optimizer: LocalOptimizer
    state: dict[str, Tensor] = field(default_factory=dict)
    received: dict[str, Tensor] = field(default_factory=dict)
    facts: dict[str, Tensor] = field(default_factory=dict)
    hyper: dict[str, Tensor] = field(default_factory=dict)

    def descend(
        self, gradient: Tensor, j: int, *, columns: str | None = None, lr: Tensor | float | None = None, of: str | None = None
    ) -> None:
        """Step j of the local optimizer along `gradient` [rows, P], which may be overwritten.

        Args:
            columns: the name of declared columns: only these take the step, with step counters of their own.
            lr: another rate than the schedule's, [rows, 1] or a number.
            of: the name of client state of P numbers that takes the step in place of the parameters, with slots of its own.
        """
        local = self.optimizer
        vectors = self.parameters if of is None else self.state[of]
        slots = local.slots[of or ""]
        rate = self.lr[:, j : j + 1]
        if lr is not None:
            rate = lr if isinstance(lr, Tensor) else rate.new_full(rate.shape, lr)
        if columns is None:
            local.rule.step(vectors, gradient, slots, local.hyper, rate, local.layers)
            return
        where = local.columns[columns]
        # Views where the columns lie together, else copies that are laid back.
        parts = {name: where.of(slots[name]) for name, width in local.rule.slots.items() if width == "row"}
        counters = {name: slots[counter(name, columns)] for name, width in local.rule.slots.items() if width == "scalar"}
        part = where.of(vectors)
        local.rule.step(part, where.of(gradient), parts | counters, local.hyper, rate, where.layers)
        for name, values in parts.items():
            where.write(slots[name], values)
        where.write(vectors, part)


def counter(name: str, columns: str) -> str:
    """The name of a slot of one number, such as a step counter, that belongs to some columns."""
    return f"{name}@{columns}"
