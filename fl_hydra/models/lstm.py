"""The character LSTM of McMahan et al. (AISTATS 2017), LEAF (2018) and Reddi et al. (ICLR 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fl_hydra.errors import require
from fl_hydra.models.base import Model, models

if TYPE_CHECKING:
    from torch import nn

    from fl_hydra.data.dataset import Card


@models.register
@dataclass
class LSTM(Model):
    """An embedding of 8 numbers, two LSTM layers of 256 units, a linear classifier: of the last output where a text has one target (LEAF,
    alphabet of 80: 819,920 parameters), of every output where each position has one (Reddi et al., vocabulary of 90: 822,570).

    Both biases of PyTorch's LSTM are kept, of which other libraries have one; initial values are PyTorch's.
    """

    name: str = "lstm"
    embedding: int = 8
    hidden: int = 256
    layers: int = 2

    def __post_init__(self) -> None:
        for key in ("embedding", "hidden", "layers"):
            require(getattr(self, key) >= 1, f"model.{key}={getattr(self, key)}: at least 1 is needed")

    def check(self, card: Card) -> None:
        require(card.textual, "model=lstm: takes text, and this dataset has images; choose model=lenet or model=small")

    def build(self, card: Card) -> nn.Module:
        from fl_hydra.models.layers.recurrent import CharacterLSTM

        return CharacterLSTM(card.classes, self.embedding, self.hidden, self.layers, card.everywhere)
