"""The LeNet-style network of Hsu et al. (ECCV 2020), as the FedSAM and FedGloss code bases run it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fl_hydra.models.base import Model, image_sides, models

if TYPE_CHECKING:
    from torch import nn

    from fl_hydra.data.dataset import DatasetInfo


@models.register
@dataclass
class LeNet(Model):
    """Two 5x5 convolutions of 64 channels, each with 2x2 max-pooling, then 384 and 192 units: 815,332 parameters on CIFAR-100.

    Pooling comes before ReLU: the function is the same, as both are monotone, and ReLU has a quarter of the work.
    """

    name: str = "lenet"

    def check(self, info: DatasetInfo) -> None:
        image_sides("lenet", info, 16, "; choose model=small")

    def build(self, info: DatasetInfo) -> nn.Module:
        from torch import nn

        channels, height, width = image_sides("lenet", info, 16)
        rows, columns = (((side - 4) // 2 - 4) // 2 for side in (height, width))
        return nn.Sequential(
            nn.Conv2d(channels, 64, 5),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(64, 64, 5),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64 * rows * columns, 384),
            nn.ReLU(),
            nn.Linear(384, 192),
            nn.ReLU(),
            nn.Linear(192, info.classes),
        )
