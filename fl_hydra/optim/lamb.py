"""LAMB (You et al. 2020, "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes", arXiv:1904.00962v5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fl_hydra.optim.adam import Moments
from fl_hydra.optim.base import Layers, optimizers
from fl_hydra.optim.trust_ratio import decay_weights, scale_weights, weight_norms

if TYPE_CHECKING:
    from torch import Tensor


@optimizers.register
@dataclass
class LAMBRule(Moments):
    """Adam's steps, each layer's scaled to the length of its weights (algorithm 2).

    For each weight: u = m^ / (sqrt(v^) + eps) + wd w;  w <- w - lr |w| / |u| u, the ratio being 1 if |w| or |u| is 0.

    The variant: bias correction as in the paper's version 5 (version 3 has none); phi is the identity, as in the authors' code, and the
    ratio is not clipped (that would be LAMBC); decay is inside the ratio; the gradient is not clipped unless `clip` is set (FusedLAMB
    clips it to 1). Biases and parameters of normalisations take Adam's steps, w <- w - lr m^ / (sqrt(v^) + eps), and are not decayed.

    lr: every step of a weight has the length lr |w|. The paper scales lr with the square root of the batch size.
    """

    name: str = "lamb"
    lr: float = 0.00177
    eps: float = 1e-6
    weight_decay: float = 0.01

    def apply(
        self, parameters: Tensor, gradient: Tensor, slots: dict[str, Tensor], hyper: dict[str, Tensor], lr: Tensor, layers: Layers
    ) -> None:
        steps = slots["steps"].add_(1)
        first = self.first_moment(gradient, slots, hyper)
        denominator = self.denominator(self.second_moment(gradient, slots, hyper), steps, hyper)
        direction = first.div(1 - hyper["beta1"] ** steps).div_(denominator)
        if self.weight_decay:
            decay_weights(parameters, direction, hyper["weight_decay"], layers)
        parameter_norms, direction_norms = weight_norms(parameters, layers), weight_norms(direction, layers)
        scale_weights(direction, parameter_norms / direction_norms, parameter_norms, direction_norms, layers)
        parameters.addcmul_(direction, lr, value=-1)
