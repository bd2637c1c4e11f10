"""FedCM (Xu et al., 2021, arXiv 2106.10874, algorithm 2): client-level momentum."""

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
class FedCM(Algorithm):
    """Clients step along alpha g + (1 - alpha) d: g is the gradient, d the mean direction of the round before, sent with the model.

    d = (x - mean) / (eta_l J), where eta_l J is the mean of what clients' rates in the round sum to. The paper's server step is `server=`:
    its eta_g = eta_l J is the mean, the default. Weight decay is the optimizer's and is not multiplied by alpha.
    """

    name: str = "fedcm"
    label = "FedCM"
    alpha: float = 0.1
    """Weight of a client's own gradient; 1: FedAvg."""

    hyper: ClassVar[tuple[str, ...]] = ("alpha",)

    def __post_init__(self) -> None:
        require(0 <= self.alpha <= 1, f"algorithm.alpha={self.alpha}: the weight of the gradient must be between 0 and 1")

    def initial(self, models: Tensor, facts: Facts) -> State:
        return State(models, carried={"direction": models.new_zeros(models.shape)})

    def send(self, state: State, clients: Clients) -> dict[str, Tensor]:
        return state.carried

    def step(self, rows: Rows, gradient: Gradient, batches: Sequence[Batch], j: int) -> None:
        own = gradient(rows.parameters, batches[0])
        rows.descend(own.lerp_(rows.received["direction"], 1 - rows.hyper["alpha"]), j)

    def outer(self, state: State, clients: Clients, mean: Tensor) -> None:
        rates = clients.sum_sent(clients.rates, clients.weights).div_(clients.weights.sum()).clamp_(min=1e-12)
        state.carried["direction"].copy_(state.model - mean).div_(rates)
        super().outer(state, clients, mean)
