"""What a model is."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fl_hydra.errors import require
from fl_hydra.registry import Component, Registry

if TYPE_CHECKING:
    from torch import nn

    from fl_hydra.data.dataset import DatasetInfo


@dataclass
class Model(Component):
    """A recipe for a module."""

    def check(self, info: DatasetInfo) -> None:
        """Refuse samples that the model cannot take.

        Raises:
            UserError: naming what works.
        """

    @abstractmethod
    def build(self, info: DatasetInfo) -> nn.Module:
        """A module for the samples of this dataset, with PyTorch's default initialisation.

        It makes logits [n, classes] of inputs [n, channels, height, width] or of characters, integers [n, positions]; where every position
        has a target, logits are [n, positions, classes].
        """


models: Registry[Model] = Registry("model", "fl_hydra.models")


def image_sides(name: str, info: DatasetInfo, least: int, instead: str = "") -> tuple[int, int, int]:
    """Channels, height and width of the images of a dataset.

    Raises:
        UserError: it has no images, or they are smaller than `least` on a side.
    """
    require(not info.textual, f"model={name}: takes images, and this dataset is text; choose model=lstm")
    channels, height, width = info.shape
    require(
        min(height, width) >= least,
        f"model={name}: images of {height}x{width} pixels are too small, {least}x{least} is needed{instead}",
    )
    return channels, height, width
