"""Rates that adapt to squared gradients: Adagrad, RMSprop and Adadelta, each as `torch.optim` implements it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fl_hydra.optim.base import Layers, Optimizer, SlotWidth, optimizers

if TYPE_CHECKING:
    from torch import Tensor


@optimizers.register
@dataclass
class Adagrad(Optimizer):
    """s <- s + g^2;  w <- w - lr / (1 + (t - 1) lr_decay) g / (sqrt(initial_accumulator_value + s) + eps) (Duchi et al. 2011)."""

    name: str = "adagrad"
    lr_decay: float = 0.0
    """How fast the rate falls with the number of steps t: by 1 / (1 + (t - 1) lr_decay)."""
    initial_accumulator_value: float = 0.0
    """What the sum of squared gradients starts from."""
    eps: float = 1e-10
    """Added to the denominator."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_not_negative("lr_decay", "initial_accumulator_value")
        self.check_positive("eps")

    @property
    def slots(self) -> dict[str, SlotWidth]:
        return {"squares": "row", "steps": "scalar"} if self.lr_decay else {"squares": "row"}

    @property
    def hyper(self) -> dict[str, float]:
        initial = self.initial_accumulator_value
        return super().hyper | {"lr_decay": self.lr_decay, "initial_accumulator_value": initial, "eps": self.eps}

    def apply(
        self, parameters: Tensor, gradient: Tensor, slots: dict[str, Tensor], hyper: dict[str, Tensor], lr: Tensor, layers: Layers
    ) -> None:
        self.decay(parameters, gradient, hyper, lr)
        squares = slots["squares"].addcmul_(gradient, gradient)
        root = (squares + hyper["initial_accumulator_value"]).sqrt_() if self.initial_accumulator_value else squares.sqrt()
        if self.lr_decay:
            steps = slots["steps"].add_(1)
            lr = lr / (1 + (steps - 1) * hyper["lr_decay"])
        parameters.addcdiv_(gradient.mul_(lr), root.add_(hyper["eps"]), value=-1)


@optimizers.register
@dataclass
class RMSprop(Optimizer):
    """v <- alpha v + (1 - alpha) g^2;  u <- m u + g / (sqrt(v) + eps);  w <- w - lr u (Tieleman and Hinton 2012)."""

    name: str = "rmsprop"
    alpha: float = 0.99
    """Decay of the moving average of the squared gradient."""
    momentum: float = 0.0
    """How much of the previous velocity is kept; 0: no momentum."""
    centered: bool = False
    """Whether the gradient is divided by an estimate of its standard deviation: the squared mean is subtracted (Graves 2013)."""
    eps: float = 1e-8
    """Added to the denominator."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_beta("alpha", "momentum")
        self.check_positive("eps")

    @property
    def slots(self) -> dict[str, SlotWidth]:
        kept = {"squares": True, "mean": self.centered, "momentum": self.momentum > 0}
        return {name: "row" for name, is_kept in kept.items() if is_kept}

    @property
    def hyper(self) -> dict[str, float]:
        return super().hyper | {"alpha": self.alpha, "momentum": self.momentum, "eps": self.eps}

    def apply(
        self, parameters: Tensor, gradient: Tensor, slots: dict[str, Tensor], hyper: dict[str, Tensor], lr: Tensor, layers: Layers
    ) -> None:
        self.decay(parameters, gradient, hyper, lr)
        variance = squares = slots["squares"].mul_(hyper["alpha"]).addcmul_(gradient * gradient, 1 - hyper["alpha"])
        if self.centered:
            mean = slots["mean"].lerp_(gradient, 1 - hyper["alpha"])
            variance = squares.addcmul(mean, mean, value=-1)
        step = gradient.div_(variance.sqrt().add_(hyper["eps"]))
        if self.momentum:
            step = slots["momentum"].mul_(hyper["momentum"]).add_(step)
        parameters.addcmul_(step, lr, value=-1)


@optimizers.register
@dataclass
class Adadelta(Optimizer):
    """v <- rho v + (1 - rho) g^2;  d = g sqrt(s + eps) / sqrt(v + eps);  s <- rho s + (1 - rho) d^2;  w <- w - lr d (Zeiler 2012)."""

    name: str = "adadelta"
    lr: float = 1.0
    rho: float = 0.9
    """Decay of the moving averages of squared gradients and squared steps."""
    eps: float = 1e-6
    """Added under both square roots."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_beta("rho")
        self.check_positive("eps")

    @property
    def slots(self) -> dict[str, SlotWidth]:
        return {"squares": "row", "squared_steps": "row"}

    @property
    def hyper(self) -> dict[str, float]:
        return super().hyper | {"rho": self.rho, "eps": self.eps}

    def apply(
        self, parameters: Tensor, gradient: Tensor, slots: dict[str, Tensor], hyper: dict[str, Tensor], lr: Tensor, layers: Layers
    ) -> None:
        self.decay(parameters, gradient, hyper, lr)
        squares = slots["squares"].mul_(hyper["rho"]).addcmul_(gradient * gradient, 1 - hyper["rho"])
        scale = (slots["squared_steps"] + hyper["eps"]).sqrt_().div_((squares + hyper["eps"]).sqrt_())
        step = gradient.mul_(scale)
        slots["squared_steps"].mul_(hyper["rho"]).addcmul_(step * step, 1 - hyper["rho"])
        parameters.addcmul_(step, lr, value=-1)
