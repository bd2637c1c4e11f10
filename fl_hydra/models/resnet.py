"""The residual networks of He et al. (CVPR 2016, section 4.2) for small images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fl_hydra.models.base import NormalisedModel, check_sizes, image_sides, models

if TYPE_CHECKING:
    from torch import nn

    from fl_hydra.data.dataset import DatasetInfo


@models.register
@dataclass
class ResNet(NormalisedModel):
    """A 3x3 convolution, three stages of residual blocks of two 3x3 convolutions each, their mean over the image, and a linear layer.

    The first block of the second and of the third stage halves the image and doubles the channels; its shortcut takes every other pixel
    and has zeros in the new channels (option A: no parameters). Convolutions before a normalisation have no bias.
    269,722 parameters with 10 classes, 275,572 with 100.
    """

    name: str = "resnet20"
    norm: str = "batch"
    blocks: int = 3
    """Blocks of each stage: 3 in ResNet-20, 5 in ResNet-32, 9 in ResNet-56."""
    width: int = 16
    """Channels of the first stage."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(self, "blocks", "width")

    @property
    def option(self) -> str:
        return {"batch": "resnet20", "group": "resnet20_gn"}.get(self.norm, f"resnet20 norm={self.norm}")

    def check(self, info: DatasetInfo) -> None:
        image_sides("resnet20", info, 4)
        self.check_groups(self.width)

    def build(self, info: DatasetInfo) -> nn.Module:
        from fl_hydra.models.layers.residual import residual_network

        return residual_network(info.shape[0], info.classes, self.blocks, self.width, self.norm, self.groups)
