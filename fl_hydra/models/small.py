"""A small convolutional network for the embedded digits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fl_hydra.models.base import Model, check_sizes, image_sides, models

if TYPE_CHECKING:
    from torch import nn

    from fl_hydra.data.dataset import DatasetInfo


@models.register
@dataclass
class Small(Model):
    """One 5x5 convolution with stride 2, then a hidden layer: some ten thousand parameters on 16x16 digits."""

    name: str = "small"
    filters: int = 8
    """Channels of the convolution."""
    hidden: int = 32
    """Units of the hidden layer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(self, "filters", "hidden")

    def check(self, info: DatasetInfo) -> None:
        image_sides("small", info, 5)

    def build(self, info: DatasetInfo) -> nn.Module:
        from torch import nn

        channels, height, width = image_sides("small", info, 5)
        rows, columns = ((side - 5) // 2 + 1 for side in (height, width))
        return nn.Sequential(
            nn.Conv2d(channels, self.filters, 5, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(self.filters * rows * columns, self.hidden),
            nn.ReLU(),
            nn.Linear(self.hidden, info.classes),
        )
