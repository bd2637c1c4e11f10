"""Adam and its relatives, each as `torch.optim` implements it; AdamW and LAMB build on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fl_hydra.optim.base import Layers, Optimizer, SlotWidth, optimizers

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Moments(Optimizer):
    """What Adam and its relatives share: moving averages m of the gradient and v of its square, and a count t of steps."""

    lr: float = 0.001
    beta1: float = 0.9
    """Decay of the moving average of the gradient."""
    beta2: float = 0.999
    """Decay of the moving average of the squared gradient."""
    eps: float = 1e-8
    """Added to the denominator."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_beta("beta1", "beta2")
        self.check_positive("eps")

    @property
    def slots(self) -> dict[str, SlotWidth]:
        return {"first_moment": "row", "second_moment": "row", "steps": "scalar"}

    @property
    def hyper(self) -> dict[str, float]:
        return super().hyper | {"beta1": self.beta1, "beta2": self.beta2, "eps": self.eps}

    def first_moment(self, gradient: Tensor, slots: dict[str, Tensor], hyper: dict[str, Tensor]) -> Tensor:
        """m <- beta1 m + (1 - beta1) g, in place: [rows, P]."""
        return slots["first_moment"].lerp_(gradient, 1 - hyper["beta1"])

    def second_moment(self, gradient: Tensor, slots: dict[str, Tensor], hyper: dict[str, Tensor]) -> Tensor:
        """v <- beta2 v + (1 - beta2) g^2, in place: [rows, P]."""
        return slots["second_moment"].mul_(hyper["beta2"]).addcmul_(gradient * gradient, 1 - hyper["beta2"])

    def denominator(self, second: Tensor, steps: Tensor, hyper: dict[str, Tensor]) -> Tensor:
        """sqrt(v / (1 - beta2^t)) + eps: [rows, P]."""
        return second.div(1 - hyper["beta2"] ** steps).sqrt_().add_(hyper["eps"])


@optimizers.register
@dataclass
class Adam(Moments):
    """w <- w - lr m^ / (sqrt(v^) + eps), m^ = m / (1 - beta1^t), v^ = v / (1 - beta2^t) (Kingma and Ba 2015, algorithm 1).

    Weight decay is coupled, as throughout this file.
    """

    name: str = "adam"

    def apply(
        self, parameters: Tensor, gradient: Tensor, slots: dict[str, Tensor], hyper: dict[str, Tensor], lr: Tensor, layers: Layers
    ) -> None:
        self.decay(parameters, gradient, hyper, lr)
        steps = slots["steps"].add_(1)
        first = self.first_moment(gradient, slots, hyper)
        denominator = self.denominator(self.second_moment(gradient, slots, hyper), steps, hyper)
        parameters.addcdiv_(first * (lr / (1 - hyper["beta1"] ** steps)), denominator, value=-1)


@optimizers.register
@dataclass
class NAdam(Moments):
    """Adam with Nesterov momentum (Dozat 2016): w <- w - lr (mu' m / (1 - c mu') + (1 - mu) g / (1 - c)) / (sqrt(v^) + eps).

    mu = beta1 (1 - 0.96^(t momentum_decay) / 2), mu' is the next step's mu, c the product of all mu so far.
    """

    name: str = "nadam"
    lr: float = 0.002
    momentum_decay: float = 0.004
    """How fast momentum approaches beta1 from below; 0: it stays at half of beta1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_not_negative("momentum_decay")

    @property
    def slots(self) -> dict[str, SlotWidth]:
        return super().slots | {"first_correction": "scalar"}

    @property
    def hyper(self) -> dict[str, float]:
        return super().hyper | {"momentum_decay": self.momentum_decay}

    def apply(
        self, parameters: Tensor, gradient: Tensor, slots: dict[str, Tensor], hyper: dict[str, Tensor], lr: Tensor, layers: Layers
    ) -> None:
        self.decay(parameters, gradient, hyper, lr)
        steps = slots["steps"].add_(1)
        now, following = (hyper["beta1"] * (1 - 0.5 * 0.96 ** (t * hyper["momentum_decay"])) for t in (steps, steps + 1))
        correction = slots["first_correction"].mul_(now).add_(1 - now)  # 1 - c, which begins at 0
        following_correction = correction * following + (1 - following)
        first = self.first_moment(gradient, slots, hyper)
        denominator = self.denominator(self.second_moment(gradient, slots, hyper), steps, hyper)
        step = gradient.mul_(lr * (1 - now) / correction).addcmul_(first, lr * following / following_correction)
        parameters.addcdiv_(step, denominator, value=-1)


@optimizers.register
@dataclass
class RAdam(Moments):
    """Adam with a rectified rate (Liu et al. 2020, algorithm 2).

    With rho_inf = 2 / (1 - beta2) - 1 and rho = rho_inf - 2 t beta2^t / (1 - beta2^t): w <- w - lr m^ while rho <= 5, then
    w <- w - lr r m^ sqrt(1 - beta2^t) / (sqrt(v) + eps), r^2 = (rho - 4)(rho - 2) rho_inf / ((rho_inf - 4)(rho_inf - 2) rho).
    """

    name: str = "radam"

    def apply(
        self, parameters: Tensor, gradient: Tensor, slots: dict[str, Tensor], hyper: dict[str, Tensor], lr: Tensor, layers: Layers
    ) -> None:
        import torch

        self.decay(parameters, gradient, hyper, lr)
        steps = slots["steps"].add_(1)
        first = self.first_moment(gradient, slots, hyper)
        second = self.second_moment(gradient, slots, hyper)
        # 1 - beta2^t loses four digits in single precision, and rho is the difference of two numbers near 2000
        second_correction = -torch.expm1(steps * hyper["beta2"].log())
        limit = 2 / (1 - hyper["beta2"]) - 1
        length = limit - 2 * steps * (1 - second_correction) / second_correction
        rectified = length > 5
        rectification = ((length - 4) * (length - 2) * limit / ((limit - 4) * (limit - 2) * length)).sqrt()  # NaN where it is not used
        rate = lr / (1 - hyper["beta1"] ** steps) * torch.where(rectified, rectification * second_correction.sqrt(), 1)
        parameters.addcdiv_(first * rate, torch.where(rectified, second.sqrt().add_(hyper["eps"]), 1), value=-1)


@optimizers.register
@dataclass
class Adamax(Moments):
    """w <- w - lr m^ / u, u <- max(beta2 u, |g| + eps) (Kingma and Ba 2015, algorithm 2)."""

    name: str = "adamax"
    lr: float = 0.002

    @property
    def slots(self) -> dict[str, SlotWidth]:
        return {"first_moment": "row", "infinity_norm": "row", "steps": "scalar"}

    def apply(
        self, parameters: Tensor, gradient: Tensor, slots: dict[str, Tensor], hyper: dict[str, Tensor], lr: Tensor, layers: Layers
    ) -> None:
        self.decay(parameters, gradient, hyper, lr)
        steps = slots["steps"].add_(1)
        first = self.first_moment(gradient, slots, hyper)
        norm = slots["infinity_norm"]
        norm.copy_(norm.mul_(hyper["beta2"]).maximum(gradient.abs().add_(hyper["eps"])))
        parameters.addcdiv_(first * (lr / (1 - hyper["beta1"] ** steps)), norm, value=-1)
