"""LARS (You, Gitman and Ginsburg 2017, "Large Batch Training of Convolutional Networks", arXiv:1708.03888)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fl_hydra.optim.base import Layers, Optimizer, SlotWidth, optimizers
from fl_hydra.optim.trust_ratio import decay_weights, scale_weights, weight_norms

if TYPE_CHECKING:
    from torch import Tensor


@optimizers.register
@dataclass
class LARSRule(Optimizer):
    """Layer-wise adaptive rate scaling, algorithm 1 with the trust coefficient of equation 6.

    For each weight: v <- m v + lr local (g + wd w);  w <- w - v,  local = trust |w| / (|g| + wd |w|), or 1 if |w| or |g| is 0.

    The variant: the learning rate is inside the velocity, as in the paper and MLPerf's "scaled momentum"; most ports to PyTorch have it
    outside (w <- w - lr v), which differs whenever the rate changes. The gradient's norm is taken before decay and momentum.
    The ratio is not clipped (that would be LARC), and no epsilon is added. Biases and parameters of normalisations take steps of SGD
    with momentum, v <- m v + lr g, and are not decayed.

    lr: a weight's first step has the length lr trust |w|, so rates are large; biases take the same rate.
    """

    name: str = "lars"
    lr: float = 0.7
    trust: float = 0.001
    """Length of a weight's step relative to the weight, at lr=1."""
    momentum: float = 0.9
    """How much of the previous velocity is kept; 0: no momentum."""
    weight_decay: float = 0.0005

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_beta("momentum")
        self.check_positive("trust")

    @property
    def slots(self) -> dict[str, SlotWidth]:
        return {"velocity": "row"} if self.momentum else {}

    @property
    def hyper(self) -> dict[str, float]:
        return super().hyper | {"trust": self.trust, "momentum": self.momentum}

    def apply(
        self, parameters: Tensor, gradient: Tensor, slots: dict[str, Tensor], hyper: dict[str, Tensor], lr: Tensor, layers: Layers
    ) -> None:
        parameter_norms, gradient_norms = weight_norms(parameters, layers), weight_norms(gradient, layers)
        ratios = hyper["trust"] * parameter_norms / (gradient_norms + hyper["weight_decay"] * parameter_norms)
        if self.weight_decay:
            decay_weights(parameters, gradient, hyper["weight_decay"], layers)
        scale_weights(gradient, ratios, parameter_norms, gradient_norms, layers)
        if self.momentum:
            parameters.sub_(slots["velocity"].mul_(hyper["momentum"]).addcmul_(gradient, lr))
        else:
            parameters.addcmul_(gradient, lr, value=-1)
