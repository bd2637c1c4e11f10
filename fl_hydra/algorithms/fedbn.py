"""FedBN (Li et al., ICLR 2021, algorithm 1): normalisations that stay with their client."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fl_hydra.algorithms.base import Algorithm, algorithms
from fl_hydra.errors import require

if TYPE_CHECKING:
    from fl_hydra.seams.layout import Columns, Layout


@algorithms.register
@dataclass
class FedBN(Algorithm):
    """FedAvg of everything but the normalisation layers, whose parameters and running statistics stay with their client.

    They are told by their type: BatchNorm, as in the paper, and GroupNorm, LayerNorm, RMSNorm and what is derived from them. The authors'
    code goes by names that contain "bn", and averages clients equally. There is no global model to evaluate: `personal/val/acc` is the
    figure to look at.
    """

    name: str = "fedbn"
    label = "FedBN"

    @property
    def global_model(self) -> bool:
        return False

    def check_layout(self, layout: Layout) -> None:
        own = self.personal(layout)
        require(
            own.width > 0,
            "algorithm=fedbn: keeps normalisation layers with their clients, and the model has none with parameters; choose a model that "
            "has, such as model=lenet_bn, or algorithm=fedavg",
        )
        require(
            layout.statistics_beside(own).width == layout.statistics.size,
            "algorithm=fedbn: a BatchNorm of the model has no parameters, and its statistics would be averaged; leave affine=False out",
        )

    def personal(self, layout: Layout) -> Columns:
        return layout.normalisations
