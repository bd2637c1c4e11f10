"""Clients that train alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fl_hydra.algorithms.base import Algorithm, algorithms

if TYPE_CHECKING:
    from fl_hydra.seams.layout import Columns, Layout


@algorithms.register
@dataclass
class Local(Algorithm):
    """Every client trains a model of its own on its own samples, from the same initial weights. Nothing is sent.

    The clients of a round are drawn as in FedAvg, so that as many samples are processed, by the same clients, in the same rounds.
    """

    name: str = "local"
    label = "Local"

    communicates: ClassVar[bool] = False

    @property
    def global_model(self) -> bool:
        return False

    def personal(self, layout: Layout) -> Columns:
        return layout.columns(lambda name, module: True)
