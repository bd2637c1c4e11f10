"""GHBM (Zaccone et al., TMLR 2025, arXiv 2311.18578): generalized heavy-ball momentum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fl_hydra.algorithms.base import Algorithm, State, algorithms
from fl_hydra.errors import require

if TYPE_CHECKING:
    from torch import Tensor

    from fl_hydra.seams.clients import Clients, Facts
    from fl_hydra.seams.rows import Batch, Gradient, Rows


@algorithms.register
@dataclass
class GHBM(Algorithm):
    """Clients add beta / (eta J) m to the gradient, m = (w^{t - tau} - w^t) / tau: over J steps they go on by beta of the server's mean
    movement in its last tau rounds, which with tau = 1 / C saw each client once on average. tau=1 is FedCM's alpha = 1 - beta, lr / alpha.

    The server sends m beside the model. It is 0 until there are tau past models, as in the authors' code. eta J is the sum of the rates
    that a client takes in the round, so that the sum of what it adds is beta m whatever the schedule or the number of its steps.
    """

    name: str = "ghbm"
    label = "GHBM"
    beta: float = 0.9
    """How much of the past movement is repeated; 0: FedAvg."""
    tau: int | None = None
    """Rounds of which the mean movement is taken; null: 1 / C. The server keeps as many models."""

    hyper: ClassVar[tuple[str, ...]] = ("beta",)
    row_facts: ClassVar[tuple[str, ...]] = ("rates",)

    def __post_init__(self) -> None:
        self.check_not_negative("beta")
        require(self.tau is None or self.tau >= 1, f"algorithm.tau={self.tau}: must be at least 1 round, or null for 1 / C")

    def initial(self, models: Tensor, facts: Facts) -> State:
        tau = self.tau or round(facts.drawable / facts.m)
        return State(models, carried={"past": models.new_zeros(1, tau, models.shape[1])})

    def send(self, state: State, clients: Clients) -> dict[str, Tensor]:
        past = state.carried["past"]
        tau = past.shape[1]
        oldest = past[:, clients.round % tau]  # of tau rounds ago; this round's model, which is next to be that, takes its place
        momentum = (oldest - state.model).div_(tau) if clients.round >= tau else oldest.clone()
        oldest.copy_(state.model)
        return {"momentum": momentum}

    def step(self, rows: Rows, gradient: Gradient, batches: Sequence[Batch], j: int) -> None:
        factor = rows.hyper["beta"] / rows.facts["rates"].clamp(min=1e-12)
        rows.descend(gradient(rows.parameters, batches[0]).addcmul_(rows.received["momentum"], factor), j)
