"""AdamW (Loshchilov and Hutter 2019, algorithm 2, in the form of `torch.optim.AdamW`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fl_hydra.optim.adam import Adam
from fl_hydra.optim.base import optimizers

if TYPE_CHECKING:
    from torch import Tensor


@optimizers.register
@dataclass
class AdamW(Adam):
    """Adam with bias correction and decoupled weight decay: w <- (1 - lr wd) w - lr m^ / (sqrt(v^) + eps)."""

    name: str = "adamw"
    weight_decay: float = 0.01

    def decay(self, parameters: Tensor, gradient: Tensor, hyper: dict[str, Tensor], lr: Tensor) -> None:
        if self.weight_decay:
            parameters.mul_(1 - lr * hyper["weight_decay"])
