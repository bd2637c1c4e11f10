"""Adaptive server optimizers (Reddi et al., ICLR 2021, algorithm 2).

They are not the optimizers of the same names in `torch.optim`: nothing corrects the bias of the moving averages, which start at 0, and
`tau`, the degree of adaptivity, is far larger than an epsilon.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fl_hydra.optim.base import Layers, SlotWidth
from fl_hydra.optim.outer import Outer, servers

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class FedOpt(Outer):
    """m <- beta1 m + (1 - beta1) D;  x <- x + lr m / (sqrt(v) + tau), D the mean change of the clients, new minus old.

    The paper also lets v start at tau^2 or above; here it starts at 0, as m does.
    """

    lr: float = 0.01
    beta1: float = 0.9
    """Decay of the moving average of the clients' mean change."""
    tau: float = 1e-3
    """Degree of adaptivity, which is added to the denominator; the larger, the less the rate adapts."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_beta("beta1")
        self.check_positive("tau")

    @property
    def slots(self) -> dict[str, SlotWidth]:
        return {"first_moment": "row", "second_moment": "row"} if self.beta1 else {"second_moment": "row"}

    @property
    def hyper(self) -> dict[str, float]:
        return super().hyper | {"beta1": self.beta1, "tau": self.tau}

    @abstractmethod
    def accumulate(self, second: Tensor, square: Tensor, hyper: dict[str, Tensor]) -> None:
        """Update v, `second`, with D^2, `square`, both [rows, P], in place."""

    def apply(
        self, parameters: Tensor, gradient: Tensor, slots: dict[str, Tensor], hyper: dict[str, Tensor], lr: Tensor, layers: Layers
    ) -> None:
        self.decay(parameters, gradient, hyper, lr)  # the gradient is -D, and so is what becomes of m
        self.accumulate(slots["second_moment"], gradient * gradient, hyper)
        first = slots["first_moment"].lerp_(gradient, 1 - hyper["beta1"]) if self.beta1 else gradient
        parameters.addcdiv_(first * lr, slots["second_moment"].sqrt().add_(hyper["tau"]), value=-1)


@servers.register
@dataclass
class FedAdagrad(FedOpt):
    """FedAdagrad: v <- v + D^2, without momentum unless `server.beta1` is set."""

    name: str = "fedadagrad"
    lr: float = 0.1
    beta1: float = 0.0

    def accumulate(self, second: Tensor, square: Tensor, hyper: dict[str, Tensor]) -> None:
        second.add_(square)


@dataclass
class _Forgetting(FedOpt):
    """What FedAdam and FedYogi share."""

    beta2: float = 0.99
    """Decay of the moving average of the squared change."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_beta("beta2")

    @property
    def hyper(self) -> dict[str, float]:
        return super().hyper | {"beta2": self.beta2}


@servers.register
@dataclass
class FedAdam(_Forgetting):
    """FedAdam: v <- beta2 v + (1 - beta2) D^2."""

    name: str = "fedadam"

    def accumulate(self, second: Tensor, square: Tensor, hyper: dict[str, Tensor]) -> None:
        second.lerp_(square, 1 - hyper["beta2"])


@servers.register
@dataclass
class FedYogi(_Forgetting):
    """FedYogi: v <- v - (1 - beta2) D^2 sign(v - D^2), which forgets large changes more slowly than FedAdam."""

    name: str = "fedyogi"

    def accumulate(self, second: Tensor, square: Tensor, hyper: dict[str, Tensor]) -> None:
        sign = (second - square).sign_()
        second.addcmul_(square, sign * (hyper["beta2"] - 1))
