"""What a method knows of the clients of a round, and what passes between them and the server."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
from fl_hydra.seams.fabric import Fabric
from fl_hydra.seams.layout import Layout
from fl_hydra.seams.rows import Outputs

Mask = np.ndarray[tuple[int], np.dtype[np.bool_]]


class ShardPass(Protocol):
    """Passes over all samples of clients, as they are."""

    def gradient(self, ids: Indices, models: Tensor) -> Tensor:
        """The gradient of each client's mean loss at its model, [rows, P] -> [rows, P], in new memory."""
        ...

    def outputs(self, client: int, model: Tensor) -> tuple[Outputs, Tensor]:
        """What a model [1, P] makes of a client's samples, and their targets."""
        ...


@dataclass(frozen=True)
class Facts:
    """What is fixed of a run.

    K: clients or workers. m: rows of a round. seed: of the run. layout: of a model's parameters.
    sizes: int64 [K], samples of each client. count_labels: counts, of these, those of each class; None where samples have no label.
    """

    K: int
    m: int
    seed: int
    layout: Layout
    sizes: Indices
    count_labels: Callable[[], Indices] | None = None

    @cached_property
    def label_counts(self) -> Indices | None:
        """Samples of each class of each client, int64 [K, classes]; None where samples have no label (text)."""
        return None if self.count_labels is None else self.count_labels()

    def draws(self, purpose: str, *ids: int) -> np.random.Generator:
        """A generator that is a function of the run's seed, a purpose (name it after the method), and ids such as round and client."""
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
        """The outer step from vectors [1, width] towards the mean [1, width] of what came back, in place.

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
        layers = self.layers if models.shape[1] == sum(self.layers.sizes) else Layers((models.shape[1],), (True,))
        self.outer.step(models, difference, slots, self.hyper, lr, layers)


@dataclass
class Clients:
    """The cohort of a run's round, as an algorithm sees it.

    facts: of the run. round: its number, from 0. ids: int64 [rows].
    weights: [rows], of the mean: 0 for those who drop out, summing to 1 unless the participation scheme weighs updates by itself
    (importance sampling); the rest is the old model's then.
    reports: bool [rows], who does not drop out. steps: int64 [rows], local steps of each. rates: [rows, 1], the sum of the learning rates
    that each takes.
    state: of these clients, by the names of the method's `client_state`, [rows, width]. slots: of their local optimizers, where these
    outlive the round. fabric: what sends. server: what takes the outer step. hyper: the method's own hyper-parameters, [1, 1] by name.
    shards: passes over all samples of clients. uplink: what a named message passes through before it is summed; None for nothing.
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
    model_sent: bool = False
    """Whether the rows' ends have been sent in this round."""
    personal: Tensor | None = None
    """Where clients are evaluated: the parameters that stay with each, [rows, width]."""

    @property
    def shares(self) -> Tensor:
        """The part of all samples that each client holds, n_i / n, [rows, 1]; 0 for those who drop out."""
        sizes = self.facts.sizes
        values = np.where(self.reports, sizes[self.ids] / sizes.sum(), 0.0)
        return torch.from_numpy(values).to(self.weights.device, self.weights.dtype)[:, None]

    def receive(self, models: Tensor) -> Tensor:
        """Each row's copy of the run's model: [1, P] -> [rows, P]. It may share the model's memory: not to be written to, and
        not to be read after the model was changed.
        """
        return self.fabric.broadcast(models)

    def mean(self, values: Tensor, name: str = "") -> Tensor:
        """The weighted mean of what each row sends: [rows, width] -> [1, width]."""
        return self.sum(values, self.weights, name)

    def sum(self, values: Tensor, weights: Tensor, name: str = "") -> Tensor:
        """The weighted sum of what each row sends: values [rows, width], weights [rows] or [rows, 1] -> [1, width].

        All that a row sends in a round is one message. name: of what is sent, which the method's `messages` declares, so that `uplink`
        can compress it; "" for the rows' ends, which have passed through it already.

        Raises:
            TypeError: a second vector without a name, where there is an uplink that it would not pass through.
        """
        if self.uplink is not None:
            if name:
                values = self.uplink(name, values)
            elif self.model_sent:
                raise TypeError("a second vector is sent without a name, past the uplink; name it, and declare the name in `messages`")
            else:
                self.model_sent = True
        return self.fabric.sum(values, weights.flatten())

    def sum_sent(self, values: Tensor, weights: Tensor) -> Tensor:
        """The same of what the rows have sent already, as the ends with other weights: it costs nothing more."""
        return self.fabric.sum_weighted(values, weights.flatten())

    def gradient(self, models: Tensor) -> Tensor:
        """The gradient of each client's mean loss over all its samples, as they are, without crops or flips: at models [rows or 1, P].

        It costs operations and time, and no samples of the budget.

        Returns:
            [rows, P], in new memory.
        """
        assert self.shards is not None
        return self.shards.gradient(self.ids, models.expand(len(self.ids), -1))

    def outputs(self, client: int, model: Tensor) -> tuple[Outputs, Tensor]:
        """What a model [1, P] makes of all samples of one of these clients, as they are: outputs [n, ...] and targets [n, ...].

        It costs a forward pass of each.
        """
        assert self.shards is not None
        return self.shards.outputs(client, model)
