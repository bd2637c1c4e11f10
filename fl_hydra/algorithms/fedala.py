"""FedALA (Zhang et al., AAAI 2023, algorithm 1): what a client takes of the received model is learned, number by number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from fl_hydra.algorithms.base import Algorithm, State, algorithms
from fl_hydra.errors import require

if TYPE_CHECKING:
    from torch import Tensor

    from fl_hydra.arrays import Indices
    from fl_hydra.seams.clients import Clients, Facts
    from fl_hydra.seams.layout import Columns, Layout
    from fl_hydra.seams.rows import Rows

LOSSES, MOST_PASSES = 10, 100
"""Of how many passes the deviation of losses says whether weights still change, and after how many learning ends in any case."""


@algorithms.register
@dataclass
class FedALA(Algorithm):
    """A client begins a round with v + (x - v) W in its higher layers: v is what it ended its last round with, x the received model, and W
    weights from 0 to 1 of each number, which it first learns by steps W <- W - eta g (x - v), clipped to [0, 1], with the gradient g there.

    Learning passes once over s percent of its samples, in batches; in a client's second round until the losses of 10 passes deviate by less
    than `threshold`, and at most 100 times. W starts at 1, with which all is FedAvg. Lower layers are those received. A client is judged
    with what it would begin a round with, at the W that it learned last.

    In the authors' code every client does this in every round, and learns W once more before it is judged; samples are neighbours from a
    random place on; and its p counts weights and biases one by one where the paper's counts layers, which are chosen by name here.
    """

    name: str = "fedala"
    label = "FedALA"
    adaptive_layers: str = "head"
    """Higher layers: head (the last linear one: the paper's p = 1), none, all, or names of parameters or module classes with wildcards."""
    eta: float = 1.0
    """Learning rate of the weights; 0: FedAvg."""
    s: float = 80.0
    """Percent of a client's samples, drawn for each round, by which it learns the weights; 0: FedAvg."""
    threshold: float = 0.1
    """Deviation of the losses of 10 passes below which a client ends its first learning."""

    hyper: ClassVar[tuple[str, ...]] = ("eta",)
    own_starts: ClassVar[bool] = True
    synchronous: ClassVar[bool] = False

    def __post_init__(self) -> None:
        self.check_not_negative("eta", "threshold")
        require(0 <= self.s <= 100, f"algorithm.s={self.s}: choose a percentage, from 0 to 100")

    @property
    def personalised(self) -> bool:
        return True

    @property
    def takes_uplink(self) -> bool:
        return False  # it would encode changes of starts that the server does not know

    def check_layout(self, layout: Layout) -> None:
        self._higher(layout)

    def _higher(self, layout: Layout) -> Columns:
        return layout.select(self.adaptive_layers, "algorithm.adaptive_layers")

    def columns(self, layout: Layout) -> dict[str, Columns]:
        return {"adaptive": self._higher(layout)}

    def client_state(self, models: Tensor, facts: Facts) -> dict[str, Tensor]:
        """local: v. weights: W. rounds: 0 before a client's first round, 1 until it has learned W, then 2."""
        local = self._higher(facts.layout).of(models).clone()
        return {"local": local, "weights": local.new_ones(local.shape), "rounds": models.new_zeros(1, 1)}

    def start(self, state: State, clients: Clients) -> Tensor:
        models, kept = clients.receive(state.model).clone(), clients.state
        higher, received = self._higher(clients.facts.layout), self._higher(clients.facts.layout).of(models).clone()
        rounds, batches = kept["rounds"].flatten().tolist(), [self._batches(clients, client) for client in clients.ids.tolist()]
        learning = [done > 0 and bool(own) and higher.width > 0 for done, own in zip(rounds, batches, strict=True)]
        losses: list[list[float]] = [[] for _ in rounds]
        self._mix(models, higher, received, kept)
        while any(learning):
            last = models.new_zeros(len(models))
            active = [own if learns else [] for own, learns in zip(batches, learning, strict=True)]
            for samples in zip_longest(*active, fillvalue=np.zeros(0, np.int64)):
                gradients, found = clients.gradient_of(models, samples)
                kept["weights"].sub_(clients.hyper["eta"] * higher.of(gradients) * (received - kept["local"])).clamp_(0, 1)
                self._mix(models, higher, received, kept)
                last = found.where(found.new_tensor([len(own) for own in samples]) > 0, last)
            for own, loss in zip(losses, last.tolist(), strict=True):
                own.append(loss)
            learning = [learns and done == 1 and self._changes(own) for learns, done, own in zip(learning, rounds, losses, strict=True)]
        kept["rounds"].masked_fill_(kept["rounds"] > 0, 2)
        return models

    def _batches(self, clients: Clients, client: int) -> list[Indices]:
        size, facts = int(clients.facts.sizes[client]), clients.facts
        drawn = facts.draws("fedala", clients.round, client).permutation(size)[: int(self.s / 100 * size)]
        return [drawn[first : first + facts.batch_size] for first in range(0, len(drawn), facts.batch_size)]

    def _changes(self, losses: Sequence[float]) -> bool:
        return len(losses) < MOST_PASSES and (len(losses) <= LOSSES or float(np.std(losses[-LOSSES:])) >= self.threshold)

    def _mix(self, models: Tensor, higher: Columns, received: Tensor, kept: dict[str, Tensor]) -> None:
        higher.write(models, kept["local"].lerp(received, kept["weights"]))

    def after_steps(self, rows: Rows) -> None:
        rows.state["local"].copy_(rows.optimizer.columns["adaptive"].of(rows.parameters))
        rows.state["rounds"].clamp_(min=1)

    def personal_models(self, state: State, clients: Clients) -> Tensor:
        models, higher = super().personal_models(state, clients), self._higher(clients.facts.layout)
        self._mix(models, higher, higher.of(models).clone(), clients.state)
        return models
