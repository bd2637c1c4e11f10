"""FedExP (Jhunjhunwala et al., ICLR 2023, algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fl_hydra.algorithms.base import Algorithm, State, algorithms
from fl_hydra.errors import require

if TYPE_CHECKING:
    from torch import Tensor

    from fl_hydra.seams.clients import Clients, Facts


@algorithms.register
@dataclass
class FedExP(Algorithm):
    """FedAvg whose server goes further than the mean where clients' changes d_k disagree: x <- x + eta_g d, d the mean of d_k.

    eta_g = max(1, the mean of |d_k|^2 / (2 (|d|^2 + eps))). Both means are weighted by samples (the paper's 1 / M, if shards are equal).
    Such steps oscillate, so that the paper takes the mean of the last two models as its result; it is what is evaluated.
    """

    name: str = "fedexp"
    label = "FedExP"
    eps: float = 1e-3
    """Keeps the server's step finite where the mean change is small."""

    hyper: ClassVar[tuple[str, ...]] = ("eps",)
    needs_ends: ClassVar[bool] = True
    own_server: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self.check_not_negative("eps")
        require(self.eps > 0, "algorithm.eps=0: FedExP divides by it where clients cancel out; choose a number above 0, such as 0.001")

    def initial(self, models: Tensor, facts: Facts) -> State:
        return State(models, carried={"previous": models.clone()})

    def update(self, state: State, clients: Clients, starts: Tensor, ends: Tensor) -> None:
        squares = clients.sum_sent((ends - starts).square_().sum(1, keepdim=True), clients.weights)
        change = clients.mean(ends) - state.model
        length = change.square().sum(1, keepdim=True) + clients.hyper["eps"]
        state.carried["previous"].copy_(state.model)
        state.model.addcmul_(change, (squares / (2 * length)).clamp_(min=1))

    def models(self, state: State) -> Tensor:
        return (state.model + state.carried["previous"]) / 2
