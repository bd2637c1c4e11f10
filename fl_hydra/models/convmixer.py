"""ConvMixer (Trockman and Kolter, "Patches Are All You Need?", TMLR 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fl_hydra.errors import require
from fl_hydra.models.base import NormalisedModel, check_sizes, image_sides, models

if TYPE_CHECKING:
    from torch import nn

    from fl_hydra.data.dataset import DatasetInfo


@models.register
@dataclass
class ConvMixer(NormalisedModel):
    """ConvMixer-256/8 with patches of 2x2 pixels and kernels of 5x5: 617,316 parameters on CIFAR-100.

    A normalisation comes after GELU, so that convolutions keep their bias, as the authors' do.
    """

    name: str = "convmixer"
    norm: str = "batch"
    patch: int = 2
    """Pixels of a patch's side."""
    width: int = 256
    """Channels."""
    depth: int = 8
    """Blocks."""
    kernel: int = 5
    """Pixels of a depthwise convolution's side, an odd number."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(self, "patch", "width", "depth", "kernel")
        require(self.kernel % 2 == 1, f"model.kernel={self.kernel}: must be odd, so that images keep their size")

    def check(self, info: DatasetInfo) -> None:
        image_sides("convmixer", info, self.patch)
        self.check_groups(self.width)

    def build(self, info: DatasetInfo) -> nn.Module:
        from fl_hydra.models.layers.depthwise import convmixer

        return convmixer(info.shape[0], info.classes, self.patch, self.width, self.depth, self.kernel, self.norm, self.groups)
