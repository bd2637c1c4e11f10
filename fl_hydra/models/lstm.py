"""The character LSTM of LEAF (Caldas et al., 2018) and of Reddi et al. (ICLR 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fl_hydra.errors import require
from fl_hydra.models.base import Model, check_sizes, models

if TYPE_CHECKING:
    from torch import nn

    from fl_hydra.data.dataset import DatasetInfo


@models.register
@dataclass
class CharacterLSTM(Model):
    """Characters of 8 numbers each, two LSTM layers of 256 units, and a linear head.

    On LEAF's Shakespeare (80 characters, the one after a window is predicted) 819,920 parameters; on that of Reddi et al. (90
    characters, the next one is predicted at every position) 822,570.
    """

    name: str = "lstm"
    embedding: int = 8
    """Numbers that represent a character."""
    hidden: int = 256
    """Units of each LSTM layer."""
    layers: int = 2
    """LSTM layers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(self, "embedding", "hidden", "layers")

    def check(self, info: DatasetInfo) -> None:
        require(info.textual, "model=lstm: reads text, and this dataset has images; choose model=lenet or model=small")

    def build(self, info: DatasetInfo) -> nn.Module:
        return character_lstm(info.classes, self.embedding, self.hidden, self.layers, info.everywhere)


def character_lstm(vocabulary: int, embedding: int = 8, hidden: int = 256, layers: int = 2, every_position: bool = False) -> nn.Module:
    """A module from integers [n, T] to logits [n, vocabulary] of the character that follows, or [n, T, vocabulary] at every position."""
    from collections import OrderedDict

    from torch import nn

    from fl_hydra.models.layers.recurrent import LSTM, Embedding, Last

    parts: list[tuple[str, nn.Module]] = [("embedding", Embedding(vocabulary, embedding)), ("lstm", LSTM(embedding, hidden, layers))]
    if not every_position:
        parts.append(("last", Last()))
    return nn.Sequential(OrderedDict([*parts, ("head", nn.Linear(hidden, vocabulary))]))
