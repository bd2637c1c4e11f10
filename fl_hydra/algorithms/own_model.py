"""Clients that keep a model of their own beside the server's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fl_hydra.algorithms.base import Algorithm, State

if TYPE_CHECKING:
    from torch import Tensor

    from fl_hydra.seams.clients import Clients, Facts
    from fl_hydra.seams.rows import Batch, Gradient, Rows


@dataclass
class OwnModel(Algorithm):
    """FedAvg, whose clients keep `own` [rows, P] from round to round, which begins as the initial model, and are judged with it.

    A client that has not trained yet is judged with the server's model. Where BatchNorm's running statistics are averaged, an own model is
    evaluated with the averages.
    """

    @property
    def personalised(self) -> bool:
        return True

    def client_state(self, models: Tensor, facts: Facts) -> dict[str, Tensor]:
        return {"own": models.clone(), "trained": models.new_zeros(1, 1)}

    def step(self, rows: Rows, gradient: Gradient, batches: Sequence[Batch], j: int) -> None:
        rows.state["trained"].fill_(1)
        super().step(rows, gradient, batches, j)

    def personal_models(self, state: State, clients: Clients) -> Tensor:
        return self.judged(state, clients).where(clients.state["trained"] > 0, state.model)

    def join(self, state: State, models: Tensor, clients: Clients, steps: int) -> Tensor:
        return clients.tune(models, steps)

    def judged(self, state: State, clients: Clients) -> Tensor:
        """With what clients that have trained are judged, [rows, P]."""
        return clients.state["own"]
