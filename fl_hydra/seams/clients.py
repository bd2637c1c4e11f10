"""What a method knows about a round's clients, and the messages between them and the server."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fl_hydra.arrays import Indices
from fl_hydra.optim.base import Layers
from fl_hydra.optim.outer import Outer
from fl_hydra.randomness import generator
from fl_hydra.seams.architectures import Architectures
from fl_hydra.seams.fabric import Fabric
from fl_hydra.seams.layout import Columns, Layout
from fl_hydra.seams.rows import Outputs

Mask = np.ndarray[tuple[int], np.dtype[np.bool_]]


class ShardPass(Protocol):
    """Passes over all samples of a client, without augmentation."""

    def gradient(self, ids: Indices, models: Tensor) -> Tensor:
        """The gradient of each client's mean loss at its model, [rows, P] -> [rows, P], in new memory."""
        ...

    def gradient_of(self, ids: Indices, models: Tensor, samples: Sequence[Indices]) -> tuple[Tensor, Tensor]:
        """The gradient of the mean loss of some of each client's samples, and that loss, [rows, P] -> [rows, P], [rows], in new memory."""
        ...

    def outputs(self, client: int, model: Tensor) -> tuple[Outputs, Tensor]:
        """The outputs of a model [1, P] for a client's samples, and their targets."""
        ...

    def tune(self, ids: Indices, models: Tensor, steps: int, lr: Tensor | float | None, columns: Columns | None) -> Tensor:
        """Models [rows, P] after steps of SGD on batches of each client's samples, in new memory."""
        ...

    def charge_server(self, flops: int) -> None:
        """Charge floating-point operations of the server."""
        ...

    def charge(self, flops: int) -> None:
        """Charge floating-point operations of clients."""
        ...

    def public(self) -> tuple[Tensor, Tensor]:
        """Inputs and targets of the training samples that no client has."""
        ...


@dataclass(frozen=True)
class Facts:
    """A run's constants.

    K: clients or workers. m: rows of a round. seed: of the run. layout: of a model's parameters.
    sizes: int64 [K], samples of each client. count_labels: counts them by class; None if samples have no labels.
    architectures: of all clients' models. architecture: the number of the one that `layout` is of. batch_size: samples of a batch.
    held_out: int64, ascending, the clients that are never drawn. Nothing of theirs is known before the run has ended, so that sums and
    means over all clients are over the others.
    """

    K: int
    m: int
    seed: int
    layout: Layout
    sizes: Indices
    count_labels: Callable[[], Indices] | None = None
    held_out: Indices = field(default_factory=lambda: np.zeros(0, np.int64))
    batch_size: int = 1
    architectures: Architectures | None = None
    architecture: int = 0

    @property
    def drawable(self) -> int:
        """How many clients may be drawn: all that are not held out."""
        return self.K - len(self.held_out)

    @cached_property
    def drawn(self) -> Mask:
        """Which clients may be drawn, bool [K]: all that are not held out."""
        drawn = np.ones(self.K, np.bool_)
        drawn[self.held_out] = False
        return drawn

    @cached_property
    def label_counts(self) -> Indices | None:
        """Each client's samples of each class, int64 [K, classes]; None if samples have no labels (text)."""
        return None if self.count_labels is None else self.count_labels()

    def draws(self, purpose: str, *ids: int) -> np.random.Generator:
        """A generator determined by the run's seed, a purpose (named after the method), and ids such as round and client."""
        return generator(self.seed, purpose, *ids)


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
        """Take the outer step from `models` [1, width] towards `mean` [1, width], the mean of what clients returned, in place.

        The pseudo-gradient is old minus new (Reddi et al., ICLR 2021, algorithm 1).
        """
        if self.outer.averages:
            models.copy_(mean)
            return
        difference, lr = models - mean, self.lr
        if self.outer.divides_by_rate:
            # The rate may round to 0 in the models' precision; then nothing has moved.
            rate = self.local_lr.clamp(min=torch.finfo(self.local_lr.dtype).tiny)
            difference, lr = difference / rate, lr * rate
        layers = self.layers if models.shape[1] == sum(self.layers.sizes) else Layers((models.shape[1],), (True,))
        self.outer.step(models, difference, slots, self.hyper, lr, layers)


@dataclass
class Clients:
    """The cohort of a run's round, as an algorithm sees it.

    facts: of the run. round: its number, from 0. ids: int64 [rows].
    weights: [rows], of the mean; 0 for rows that drop out. They sum to 1 unless the participation scheme sets them itself (importance
    sampling); the old model then has the remaining weight.
    reports: bool [rows], whether each stays (does not drop out). steps: int64 [rows], local steps of each. rates: [rows, 1], the sum of
    each row's learning rates over these steps.
    state: `client_state` of these clients, by name, [rows, width]. slots: of their local optimizers, if these outlive the round.
    fabric: sends messages. server: takes the outer step. hyper: the method's own hyper-parameters, [1, 1] by name.
    shards: passes over all samples of clients. uplink: encodes a named message before it is summed; None: there is no uplink.
    """

    facts: Facts
    round: int
    ids: Indices
    weights: Tensor
    reports: Mask
    steps: Indices
    rates: Tensor
    state: dict[str, Tensor]
    slots: dict[str, Tensor]
    fabric: Fabric
    server: Server
    hyper: Mapping[str, Tensor] = field(default_factory=dict)
    shards: ShardPass | None = None
    uplink: Callable[[str, Tensor], Tensor] | None = None
    own_ends: Tensor | None = None
    """In `update`, the rows' ends before an uplink encoded them, [rows, P]: what clients know, and the server may not."""
    model_sent: bool = False
    """Whether the rows' ends have been sent in this round."""
    personal: Tensor | None = None
    """The parameters that stay with each client, [rows, width]; set only when clients are evaluated."""

    @property
    def shares(self) -> Tensor:
        """The fraction of all samples that each client holds, n_i / n, [rows, 1]; 0 for clients that drop out. What clients hold that are
        held out does not count in n."""
        sizes = self.facts.sizes
        values = np.where(self.reports, sizes[self.ids] / sizes[self.facts.drawn].sum(), 0.0)
        return torch.from_numpy(values).to(self.weights.device, self.weights.dtype)[:, None]

    def receive(self, models: Tensor) -> Tensor:
        """Each row's copy of the run's model: [1, P] -> [rows, P]. It may share the model's memory: do not write to it, and
        do not read it after the model has changed.
        """
        return self.fabric.broadcast(models)

    def mean(self, values: Tensor, name: str = "") -> Tensor:
        """The weighted mean of the vectors that rows send: [rows, width] -> [1, width]."""
        return self.sum(values, self.weights, name)

    def sum(self, values: Tensor, weights: Tensor, name: str = "") -> Tensor:
        """The weighted sum of the vectors that rows send: values [rows, width], weights [rows] or [rows, 1] -> [1, width].

        Everything that a row sends in a round is one message. name: of the vector, declared in the method's `messages`, so that `uplink`
        can compress it; "" for the rows' ends, which have already passed through it.

        Raises:
            TypeError: a second vector has no name, and would bypass the uplink.
        """
        if self.uplink is not None:
            if name:
                values = self.uplink(name, values)
            elif self.model_sent:
                raise TypeError("a second vector is sent without a name, past the uplink; name it, and declare the name in `messages`")
            else:
                self.model_sent = True
        return self.fabric.sum(values, weights.flatten())

    def mean_before(self, values: Tensor) -> Tensor:
        """The weighted mean of vectors that rows send before their local steps, [rows, width] -> [1, width], which `send` answers.

        It is an exchange of its own, which no uplink encodes; the clients that drop out in the round have no part in it.
        """
        self.fabric.count_before(values)
        return self.fabric.sum_weighted(values, self.weights)

    def sum_sent(self, values: Tensor, weights: Tensor) -> Tensor:
        """The weighted sum of vectors that were already sent, such as the ends with other weights; not charged again."""
        return self.fabric.sum_weighted(values, weights.flatten())

    def gradient(self, models: Tensor) -> Tensor:
        """The gradient, at models [rows or 1, P], of each client's mean loss over all its samples, without crops or flips.

        It is charged in operations and time, but not in samples of the budget.

        Returns:
            [rows, P], in new memory.
        """
        assert self.shards is not None
        return self.shards.gradient(self.ids, models.expand(len(self.ids), -1))

    def gradient_of(self, models: Tensor, samples: Sequence[Indices]) -> tuple[Tensor, Tensor]:
        """The gradient, at models [rows, P], of the mean loss of some of each client's samples, without crops or flips, and that loss.

        It is charged as :meth:`gradient` is.

        Args:
            samples: for each row, int64 [n], which of its client's samples, from 0. A row without any is not computed.

        Returns:
            [rows, P] and [rows], in new memory; 0 for rows without samples.
        """
        assert self.shards is not None
        found, losses = torch.zeros_like(models, memory_format=torch.contiguous_format), models.new_zeros(len(models))
        rows = [row for row, own in enumerate(samples) if len(own)]
        if rows:
            found[rows], losses[rows] = self.shards.gradient_of(self.ids[rows], models[rows], [samples[row] for row in rows])
        return found, losses

    def outputs(self, client: int, model: Tensor) -> tuple[Outputs, Tensor]:
        """The outputs [n, ...] of a model [1, P] for all samples of one of these clients, without augmentation, and their targets [n, ...].

        It is charged as a forward pass of each sample.
        """
        assert self.shards is not None
        return self.shards.outputs(client, model)

    def tune(self, models: Tensor, steps: int, lr: Tensor | float | None = None, columns: Columns | None = None) -> Tensor:
        """Models [rows, P] after `steps` steps of plain SGD on each client's own training samples, in new memory.

        Its batches are those with which the client's order begins, cropped and flipped as in training. BatchNorm normalises with the batch,
        and running statistics stay as they are. It is charged as gradients, though not as samples of the budget; in evaluations not at all.

        Args:
            lr: a number, or [1 or rows, 1]; None: the run's peak rate. columns: which parameters are trained; None: all.
        """
        assert self.shards is not None
        return self.shards.tune(self.ids, models, steps, lr, columns)

    def charge_server(self, flops: int) -> None:
        """Charge floating-point operations of the server, for a method that `computes_at_server`."""
        assert self.shards is not None
        self.shards.charge_server(flops)

    def charge(self, flops: int) -> None:
        """Charge floating-point operations of these clients that no gradient, output or product of their own models has counted."""
        assert self.shards is not None
        self.shards.charge(flops)

    def public(self) -> tuple[Tensor, Tensor]:
        """Inputs [n, ...] and targets [n] of the training samples that a method's `public` withholds from all clients, without crops or
        flips."""
        assert self.shards is not None
        return self.shards.public()
