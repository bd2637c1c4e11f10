"""FedAvg with fine-tuning (Wang et al., "Federated evaluation of on-device personalization", 2019; Cheng et al., 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fl_hydra.algorithms.base import Algorithm, algorithms

if TYPE_CHECKING:
    from torch import Tensor

    from fl_hydra.seams.clients import Clients


@algorithms.register
@dataclass
class FedAvgFT(Algorithm):
    """FedAvg, after which every client takes some steps of plain SGD on its own samples before it is judged.

    Training is FedAvg's, bit by bit; fine-tuning changes nothing of it, and is not charged.
    """

    name: str = "fedavg_ft"
    label = "FedAvg-FT"
    ft_steps: int = 5
    """Steps that a client takes on its own samples before it is judged; 0: it is judged with the model of everyone."""
    ft_lr: float | None = None
    """Learning rate of these steps; null: the run's, at the top of its schedule."""

    def __post_init__(self) -> None:
        self.check_not_negative("ft_steps")
        if self.ft_lr is not None:
            self.check_not_negative("ft_lr")

    def identity(self) -> dict[str, Any]:
        return super().identity() | ({} if self.ft_steps else {"ft_lr": None})

    @property
    def personalised(self) -> bool:
        return True

    def adapt(self, models: Tensor, clients: Clients) -> Tensor:
        return clients.tune(models, self.ft_steps, self.ft_lr)
