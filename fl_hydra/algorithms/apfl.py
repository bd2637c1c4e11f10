"""APFL (Deng et al., 2020, arXiv 2003.13461, algorithm 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fl_hydra.algorithms.base import State, algorithms
from fl_hydra.algorithms.own_model import OwnModel
from fl_hydra.errors import require

if TYPE_CHECKING:
    from torch import Tensor

    from fl_hydra.seams.clients import Clients, Facts
    from fl_hydra.seams.rows import Batch, Gradient, Rows


@algorithms.register
@dataclass
class APFL(OwnModel):
    """FedAvg, beside which every client trains a model v of its own, so that the mixture alpha v + (1 - alpha) w suits it: with each batch
    v also steps along alpha g(mixture), by the local optimizer. A client is judged with the mixture of v and the server's model.

    With `adaptive`, alpha <- alpha - eta <v - w, g(mixture)>, within 0 and 1, in the first step of each round, as in the authors' code.
    That mixes outputs of the two models, where here, as in the paper, parameters are mixed; and its slope is another (docs/comparisons.md).
    """

    name: str = "apfl"
    label = "APFL"
    alpha: float = 0.5
    """Weight of a client's own model in its mixture, at first if it adapts; 0: FedAvg, 1: every client alone."""
    adaptive: bool = True
    """Whether each client learns its own alpha."""

    hyper: ClassVar[tuple[str, ...]] = ("alpha",)
    gradients_per_batch: ClassVar[float] = 2.0
    stepped: ClassVar[tuple[str, ...]] = ("own",)

    def __post_init__(self) -> None:
        require(0 <= self.alpha <= 1, f"algorithm.alpha={self.alpha}: a client's own model has a weight between 0 and 1")

    def client_state(self, models: Tensor, facts: Facts) -> dict[str, Tensor]:
        return {**super().client_state(models, facts), "alpha": models.new_full((1, 1), self.alpha)}

    def step(self, rows: Rows, gradient: Gradient, batches: Sequence[Batch], j: int) -> None:
        own, alpha = rows.state["own"], rows.state["alpha"]
        apart = own - rows.parameters if self.adaptive and j == 0 else None
        mixture = rows.parameters.lerp(own, alpha)
        super().step(rows, gradient, batches, j)
        slope = gradient(mixture, batches[0], metered=False)
        change = None if apart is None else apart.mul_(slope).sum(1, keepdim=True).mul_(rows.lr[:, :1])
        rows.descend(slope.mul_(alpha), j, of="own")
        if change is not None:
            alpha.sub_(change).clamp_(0, 1)

    def judged(self, state: State, clients: Clients) -> Tensor:
        return state.model.lerp(clients.state["own"], clients.state["alpha"])
