"""Mime (Karimireddy et al., NeurIPS 2021, arXiv 2008.03606, algorithm 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fl_hydra.algorithms.base import State, algorithms
from fl_hydra.algorithms.mimelite import MimeLite

if TYPE_CHECKING:
    from torch import Tensor

    from fl_hydra.seams.clients import Clients, Facts
    from fl_hydra.seams.rows import Batch, Gradient, Rows


@algorithms.register
@dataclass
class Mime(MimeLite):
    """MimeLite whose rule gets g(w) - g(x) + c, with both gradients of the same batch, and c the mean of the gradients at x of all samples
    of each client.

    c is asked for before the local steps, in an exchange of its own, and also updates the statistics. Clients that drop out do not answer.
    """

    name: str = "mime"
    label = "Mime"
    gradients_per_batch: ClassVar[float] = 2.0
    messages: ClassVar[tuple[str, ...]] = ()

    @property
    def takes_uplink(self) -> bool:
        return False

    def initial(self, models: Tensor, facts: Facts) -> State:
        state = super().initial(models, facts)
        state.carried["control"] = models.new_zeros(models.shape)
        return state

    def send(self, state: State, clients: Clients) -> dict[str, Tensor]:
        state.carried["control"].copy_(clients.mean_before(clients.gradient(state.model)))
        return super().send(state, clients)

    def step(self, rows: Rows, gradient: Gradient, batches: Sequence[Batch], j: int) -> None:
        correction = rows.received["control"] - gradient(rows.starts, batches[0], metered=False)
        own = gradient(rows.parameters, batches[0]).add_(correction)
        rows.descend(self.direction(own, rows.received, rows.hyper), j)

    def at_server(self, state: State, clients: Clients) -> Tensor:
        return state.carried["control"]
