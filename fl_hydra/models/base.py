"""What a model is."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fl_hydra.registry import Component, Registry

if TYPE_CHECKING:
    from torch import nn


@dataclass
class Model(Component):
    """A recipe for a module."""

    def check(self, height: int, width: int) -> None:
        """Refuse images that the model cannot take.

        Raises:
            UserError: naming what works.
        """

    @abstractmethod
    def build(self, channels: int, height: int, width: int, classes: int) -> nn.Module:
        """A module from inputs [n, channels, height, width] to logits [n, classes], with PyTorch's default initialisation."""


models: Registry[Model] = Registry("model", "fl_hydra.models")
