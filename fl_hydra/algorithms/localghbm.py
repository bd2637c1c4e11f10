"""LocalGHBM (Zaccone et al., TMLR 2025, arXiv 2311.18578): GHBM without its messages, from what clients remember."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fl_hydra.algorithms.base import Algorithm, State, algorithms

if TYPE_CHECKING:
    from torch import Tensor

    from fl_hydra.seams.clients import Clients, Facts
    from fl_hydra.seams.rows import Batch, Gradient, Rows


@algorithms.register
@dataclass
class LocalGHBM(Algorithm):
    """Clients add beta / (eta J) m to the gradient, m = C (anchor - w^t), where w^t is the model that a client has received and its anchor
    the one that it received before; its rounds are 1 / C apart on average. m is 0 in a client's first round.

    eta J is the sum of the rates that a client takes in the round. A client that drops out keeps the anchor that it had.
    """

    name: str = "localghbm"
    label = "LocalGHBM"
    beta: float = 0.9
    """How much of the movement since the anchor is repeated; 0: FedAvg."""

    hyper: ClassVar[tuple[str, ...]] = ("beta",)
    row_facts: ClassVar[tuple[str, ...]] = ("rates",)

    def __post_init__(self) -> None:
        self.check_not_negative("beta")

    def client_state(self, models: Tensor, facts: Facts) -> dict[str, Tensor]:
        """The anchor, and C once there is one."""
        return {"anchor": models.new_zeros(models.shape), "C": models.new_zeros(1, 1)}

    def current(self, rows: Rows) -> Tensor:
        """The models [rows, P] to which the movement since the anchors leads."""
        return rows.starts

    def step(self, rows: Rows, gradient: Gradient, batches: Sequence[Batch], j: int) -> None:
        factor = rows.hyper["beta"] * rows.state["C"] / rows.facts["rates"].clamp(min=1e-12)
        back = rows.state["anchor"] - self.current(rows)
        rows.descend(gradient(rows.parameters, batches[0]).addcmul_(back, factor), j)

    def after_steps(self, rows: Rows) -> None:
        rows.state["anchor"].copy_(rows.starts)

    def outer(self, state: State, clients: Clients, mean: Tensor) -> None:
        clients.state["C"].fill_(clients.facts.m / clients.facts.drawable)
        super().outer(state, clients, mean)
