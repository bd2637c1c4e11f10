"""AdamW (Loshchilov and Hutter 2019, algorithm 2, in the form of `torch.optim.AdamW`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fl_hydra.errors import require
from fl_hydra.optim.base import Optimizer, check_beta, optimizers

if TYPE_CHECKING:
    from torch import Tensor


@optimizers.register
@dataclass
class AdamW(Optimizer):
    """Adam with bias correction and decoupled weight decay: w <- (1 - lr wd) w - lr m^ / (sqrt(v^) + eps)."""

    name: str = "adamw"
    lr: float = 0.001
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_beta("beta1", self.beta1)
        check_beta("beta2", self.beta2)
        require(self.eps > 0, f"optimizer.eps={self.eps}: must be greater than 0")

    @property
    def slots(self) -> dict[str, bool]:
        return {"first_moment": True, "second_moment": True, "steps": False}

    @property
    def hyper(self) -> dict[str, float]:
        return {"weight_decay": self.weight_decay, "beta1": self.beta1, "beta2": self.beta2, "eps": self.eps}

    def apply(self, parameters: Tensor, gradient: Tensor, slots: dict[str, Tensor], hyper: dict[str, Tensor], lr: Tensor) -> None:
        steps = slots["steps"].add_(1)
        first = slots["first_moment"].lerp_(gradient, 1 - hyper["beta1"])
        second = slots["second_moment"].mul_(hyper["beta2"]).addcmul_(gradient * gradient, 1 - hyper["beta2"])
        if self.weight_decay:
            parameters.mul_(1 - lr * hyper["weight_decay"])
        first_correction = 1 - hyper["beta1"] ** steps
        second_correction = 1 - hyper["beta2"] ** steps
        denominator = second.div(second_correction).sqrt_().add_(hyper["eps"])
        parameters.addcdiv_(first * (lr / first_correction), denominator, value=-1)
