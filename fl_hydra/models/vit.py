"""A small vision transformer (Dosovitskiy et al., ICLR 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fl_hydra.errors import require
from fl_hydra.models.base import Model, check_sizes, image_sides, models

if TYPE_CHECKING:
    from torch import nn

    from fl_hydra.data.dataset import DatasetInfo


@models.register
@dataclass
class ViT(Model):
    """Patches of 4x4 pixels, six blocks of width 128 with LayerNorm before attention and before the hidden layer.

    As in Beyer et al. (2022) the mean of all tokens is classified, without a token of its own for that. 822,500 parameters on CIFAR-100.
    """

    name: str = "vit"
    patch: int = 4
    """Pixels of a patch's side."""
    width: int = 128
    """Numbers of a token."""
    depth: int = 6
    """Blocks."""
    heads: int = 4
    """Heads of attention."""
    hidden: int = 256
    """Units of each block's hidden layer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(self, "patch", "width", "depth", "heads", "hidden")
        require(self.width % self.heads == 0, f"model.heads={self.heads}: must divide model.width={self.width}")

    def check(self, info: DatasetInfo) -> None:
        _, height, width = image_sides("vit", info, self.patch)
        require(
            height % self.patch == 0 and width % self.patch == 0,
            f"model.patch={self.patch}: images of {height}x{width} pixels cannot be divided into such patches; choose a divisor of both",
        )

    def build(self, info: DatasetInfo) -> nn.Module:
        from fl_hydra.models.layers.transformer import VisionTransformer

        channels, height, width = info.shape
        patches = (height // self.patch) * (width // self.patch)
        return VisionTransformer(channels, patches, info.classes, self.patch, self.width, self.depth, self.heads, self.hidden)
