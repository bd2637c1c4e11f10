"""The LeNet-style network of Hsu et al. (ECCV 2020), as the FedSAM and FedGloss code bases run it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fl_hydra.models.base import NormalisedModel, image_sides, models

if TYPE_CHECKING:
    from torch import nn

    from fl_hydra.data.dataset import DatasetInfo


@models.register
@dataclass
class LeNet(NormalisedModel):
    """Two 5x5 convolutions of 64 channels, each with 2x2 max-pooling, then 384 and 192 units: 815,332 parameters on CIFAR-100.

    Pooling comes before ReLU: the function is the same, as both are monotone, and ReLU has a quarter of the work. A normalisation comes
    before both, and after a convolution without bias.
    """

    name: str = "lenet"

    @property
    def option(self) -> str:
        return {"none": "lenet", "batch": "lenet_bn", "group": "lenet_gn", "layer": "lenet_ln"}[self.norm]

    def check(self, info: DatasetInfo) -> None:
        image_sides("lenet", info, 16, "; choose model=small")
        self.check_groups(64)

    def build(self, info: DatasetInfo) -> nn.Module:
        from torch import nn

        from fl_hydra.models.layers.normalisation import normalisation

        channels, height, width = image_sides("lenet", info, 16)
        rows, columns = (((side - 4) // 2 - 4) // 2 for side in (height, width))

        def convolution(channels: int) -> list[nn.Module]:
            layer = nn.Conv2d(channels, 64, 5, bias=self.norm == "none")
            between = [] if self.norm == "none" else [normalisation(self.norm, 64, self.groups)]
            return [layer, *between, nn.MaxPool2d(2), nn.ReLU()]

        return nn.Sequential(
            *convolution(channels),
            *convolution(64),
            nn.Flatten(),
            nn.Linear(64 * rows * columns, 384),
            nn.ReLU(),
            nn.Linear(384, 192),
            nn.ReLU(),
            nn.Linear(192, info.classes),
        )
