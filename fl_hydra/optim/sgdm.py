"""Stochastic gradient descent with momentum (Sutskever et al. 2013, in the form of `torch.optim.SGD`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fl_hydra.errors import require
from fl_hydra.optim.base import Layers, Optimizer, SlotWidth, optimizers

if TYPE_CHECKING:
    from torch import Tensor


@optimizers.register
@dataclass
class SGDM(Optimizer):
    """g <- g + wd w;  u <- m u + g;  w <- w - lr u  (Nesterov: w <- w - lr (g + m u)). Weight decay is coupled, on every parameter."""

    name: str = "sgdm"
    momentum: float = 0.9
    """How much of the previous velocity is kept; 0: no momentum."""
    nesterov: bool = False
    """Whether momentum is Nesterov's, which looks one step ahead."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_beta("momentum")
        require(not self.nesterov or self.momentum > 0, f"{self.group}.nesterov=true needs {self.group}.momentum above 0")

    @property
    def option(self) -> str:
        return "sgdm" if self.momentum else "sgd"

    @property
    def plain(self) -> bool:
        return not self.momentum and self.clip is None

    @property
    def linear(self) -> bool:
        return self.clip is None

    @property
    def slots(self) -> dict[str, SlotWidth]:
        return {"momentum": "row"} if self.momentum else {}

    @property
    def hyper(self) -> dict[str, float]:
        return super().hyper | {"momentum": self.momentum}

    def apply(
        self, parameters: Tensor, gradient: Tensor, slots: dict[str, Tensor], hyper: dict[str, Tensor], lr: Tensor, layers: Layers
    ) -> None:
        if self.weight_decay and not self.momentum:
            parameters.mul_(1 - lr * hyper["weight_decay"])  # the same step with less memory traffic
        else:
            self.decay(parameters, gradient, hyper, lr)
        if self.momentum:
            momentum = slots["momentum"].mul_(hyper["momentum"]).add_(gradient)
            gradient = gradient.addcmul_(momentum, hyper["momentum"]) if self.nesterov else momentum
        parameters.addcmul_(gradient, lr, value=-1)
