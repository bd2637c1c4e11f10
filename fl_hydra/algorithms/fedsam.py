"""FedSAM (Qu et al., ICML 2022; Caldarola et al., ECCV 2022): sharpness-aware minimisation at the clients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fl_hydra.algorithms.base import Algorithm, algorithms

if TYPE_CHECKING:
    from torch import Tensor

    from fl_hydra.seams.rows import Batch, Gradient, Rows


@algorithms.register
@dataclass
class FedSAM(Algorithm):
    """FedAvg whose clients step along the gradient at w + rho g / |g|, where g is the same batch's gradient at w (Foret et al., ICLR 2021,
    equation 2). The norm is that of a client's whole gradient. rho=0 is FedAvg at twice the cost.
    """

    name: str = "fedsam"
    label = "FedSAM"
    rho: float = 0.05
    """Distance from the weights at which the gradient is taken; 0: FedAvg, at twice the price."""

    hyper: ClassVar[tuple[str, ...]] = ("rho",)
    gradients_per_batch: ClassVar[float] = 2.0

    def __post_init__(self) -> None:
        self.check_not_negative("rho")

    def ahead(self, rows: Rows, ascent: Tensor) -> Tensor:
        """Where the second gradient is taken, given the first, `ascent` [rows, P], which may be overwritten."""
        norm = ascent.norm(dim=1, keepdim=True).clamp_(min=1e-12)
        return rows.parameters.addcmul(ascent, rows.hyper["rho"] / norm)

    def step(self, rows: Rows, gradient: Gradient, batches: Sequence[Batch], j: int) -> None:
        ahead = self.ahead(rows, gradient(rows.parameters, batches[0]))
        rows.descend(gradient(ahead, batches[0], metered=False), j)
