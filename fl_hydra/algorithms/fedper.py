"""FedPer (Arivazhagan et al., 2019, algorithm 1): layers that stay with their client."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fl_hydra.algorithms.base import Algorithm, algorithms

if TYPE_CHECKING:
    from fl_hydra.seams.layout import Columns, Layout


@algorithms.register
@dataclass
class FedPer(Algorithm):
    """FedAvg of the base layers; the personal layers of a client are trained together with them, and are never sent.

    With `none` this is FedAvg; with `all` every client trains alone. All clients begin with the same personal layers. There is no
    global model to evaluate: `personal/val/acc` is the figure to look at.
    """

    name: str = "fedper"
    label = "FedPer"
    personal_layers: str = "head"
    """head (the last linear layer), body (all else), none, all, or names of parameters or module classes (fc*, Linear|LayerNorm)."""

    @property
    def global_model(self) -> bool:
        return self.personal_layers == "none"

    def check_layout(self, layout: Layout) -> None:
        layout.select(self.personal_layers, "algorithm.personal_layers")

    def personal(self, layout: Layout) -> Columns:
        return layout.select(self.personal_layers, "algorithm.personal_layers")
