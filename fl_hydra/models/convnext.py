"""A network of ConvNeXt's blocks (Liu et al., CVPR 2022) for small images."""

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
class ConvNeXt(Model):
    """Patches of 2x2 pixels, three stages of two blocks of 40, 80 and 160 channels, LayerNorm throughout: 651,020 parameters on CIFAR-100.

    The authors' own networks have four stages and patches of 4x4 pixels for larger images, and, for hundreds of epochs, a layer scale
    that begins at 1e-6 and stochastic depth; both are left out here.
    """

    name: str = "convnext"
    patch: int = 2
    """Pixels of a patch's side."""
    width: int = 40
    """Channels of the first stage; each further one has twice as many."""
    depth: int = 2
    """Blocks of each stage."""
    stages: int = 3
    """Stages; each further one has half the height and width."""
    kernel: int = 7
    """Pixels of a depthwise convolution's side, an odd number."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(self, "patch", "width", "depth", "stages", "kernel")
        require(self.stages <= 8, f"model.stages={self.stages}: 1 to 8 are possible")
        require(self.kernel % 2 == 1, f"model.kernel={self.kernel}: must be odd, so that images keep their size")

    def check(self, info: DatasetInfo) -> None:
        image_sides("convnext", info, self.patch * 2 ** (self.stages - 1), "; choose fewer model.stages or a smaller model.patch")

    def build(self, info: DatasetInfo) -> nn.Module:
        from fl_hydra.models.layers.depthwise import convnext

        return convnext(info.shape[0], info.classes, self.patch, self.width, self.depth, self.stages, self.kernel)
