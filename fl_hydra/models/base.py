"""What a model is."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from fl_hydra.errors import require
from fl_hydra.registry import Component, Registry, as_before

if TYPE_CHECKING:
    from torch import nn

    from fl_hydra.data.dataset import DatasetInfo


STATISTICS = ("averaged", "local", "frozen")
NORMS = ("none", "batch", "group", "layer")


@dataclass
class Model(Component):
    """A recipe for a module."""

    group: ClassVar[str] = "model"

    statistics: str = field(default="averaged", metadata=as_before("averaged"))
    """What becomes of BatchNorm's running statistics: averaged with the model, local (they stay with their client, which is judged with
    its own, as in SiloBN), or frozen (averaged up to `frozen_after`, then fixed and used in training too, as in FixBN)."""
    frozen_after: float = field(default=0.5, metadata=as_before(0.5))
    """Fraction of the budget after which frozen statistics no longer change. 0: mean 0 and variance 1 from the beginning."""

    def __post_init__(self) -> None:
        require(self.statistics in STATISTICS, f"model.statistics={self.statistics}: choose {', '.join(STATISTICS)}")
        require(0 <= self.frozen_after < 1, f"model.frozen_after={self.frozen_after}: a fraction of the budget, from 0 to below 1")

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), **({} if self.statistics == "frozen" else {"frozen_after": 0.5})}

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


@dataclass
class NormalisedModel(Model):
    """A network of convolutions, each of which may be followed by a normalisation."""

    norm: str = field(default="none", metadata=as_before("none"))
    """Normalisation after each convolution: none, batch, group, or layer (GroupNorm with one group)."""
    groups: int = field(default=2, metadata=as_before(2))
    """Groups of channels for norm=group; 2 as in Hsieh et al. 2020."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.norm in NORMS, f"model.norm={self.norm}: choose {', '.join(NORMS)}")
        require(1 <= self.groups <= 10_000, f"model.groups={self.groups}: 1 to 10,000 are possible")

    def check_groups(self, channels: int) -> None:
        """Refuse groups that do not divide the channels.

        Raises:
            UserError: naming a number that does.
        """
        least = next(groups for groups in range(min(self.groups, channels), 0, -1) if channels % groups == 0)
        require(
            self.norm != "group" or channels % self.groups == 0,
            f"model.groups={self.groups}: does not divide {channels} channels; choose {least}, say",
        )

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), **({} if self.norm == "group" else {"groups": 2})}


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


def check_sizes(model: Model, *names: str) -> None:
    """Refuse numbers of layers, units and so on that are not from 1 to 10,000.

    Raises:
        UserError: naming the first that is not.
    """
    for name in names:
        value = getattr(model, name)
        require(1 <= value <= 10_000, f"model.{name}={value}: 1 to 10,000 are possible")
