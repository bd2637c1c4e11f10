"""FedASAM (Caldarola et al., ECCV 2022): adaptive sharpness-aware minimisation (Kwon et al., ICML 2021) at the clients."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING, ClassVar

from fl_hydra.algorithms.base import algorithms
from fl_hydra.algorithms.fedsam import FedSAM

if TYPE_CHECKING:
    from torch import Tensor

    from fl_hydra.optim.base import Layers
    from fl_hydra.seams.rows import Rows


@algorithms.register
@dataclass
class FedASAM(FedSAM):
    """FedSAM whose distance is measured in the scale of each weight: the gradient is taken at w + rho T^2 g / |T g|, where T is |w| + eta
    for weights, and 1 for biases and the parameters of normalisations (Kwon et al., equation 6, by element).

    The authors' code takes |w| + eta for the gains of normalisations too, and for all else what is used here.
    """

    name: str = "fedasam"
    label = "FedASAM"
    rho: float = 0.7
    """Distance from the weights, in their scale, at which the gradient is taken; 0: FedAvg, at twice the price."""
    eta: float = 0.2
    """Added to the size of each weight to make its scale."""

    hyper: ClassVar[tuple[str, ...]] = ("rho", "eta")

    def __post_init__(self) -> None:
        self.check_not_negative("rho", "eta")

    def ahead(self, rows: Rows, ascent: Tensor) -> Tensor:
        scale = rows.parameters.abs().add_(rows.hyper["eta"])
        for columns in unscaled(rows.optimizer.layers):
            scale[:, columns].fill_(1)
        ascent.mul_(scale)
        norm = ascent.norm(dim=1, keepdim=True).clamp_(min=1e-12)
        return rows.parameters.addcmul(scale.mul_(ascent), rows.hyper["rho"] / norm)


@lru_cache(maxsize=16)
def unscaled(layers: Layers) -> tuple[slice, ...]:
    """Where biases and the parameters of normalisations lie in a row, neighbours together."""
    found: list[slice] = []
    for stop, size, weight in zip(accumulate(layers.sizes), layers.sizes, layers.weights, strict=True):
        if not weight:
            first = found.pop().start if found and found[-1].stop == stop - size else stop - size
            found.append(slice(first, stop))
    return tuple(found)
