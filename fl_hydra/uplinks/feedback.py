"""The base of uplinks that withhold a part of each vector, and of those of them that send single entries."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fl_hydra.errors import require
from fl_hydra.optim.base import SlotWidth
from fl_hydra.uplinks.base import Uplink

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Feedback(Uplink):
    """What a client does not send is added to its next vector (Karimireddy et al., ICML 2019, algorithm 2).

    p <- change + error;  sent <- compress(p);  error <- p - sent. A client keeps its error from one of its rounds to the next.
    """

    error_feedback: bool = True
    """Whether what is not sent is added to the next vector; false: it is lost."""

    @property
    def slots(self) -> dict[str, SlotWidth]:
        return {"error": "row"} if self.error_feedback else {}

    def encode(self, vectors: Tensor, slots: dict[str, Tensor], streams: Tensor) -> None:
        if self.error_feedback:
            vectors.add_(slots["error"])
            slots["error"].copy_(vectors)
        self.compress(vectors, streams)
        if self.error_feedback:
            slots["error"].sub_(vectors)

    @abstractmethod
    def compress(self, vectors: Tensor, streams: Tensor) -> None:
        """Replace vectors [rows, width] by what is sent of them, in place; streams: int64 [rows], of each row's draws."""


@dataclass
class Sparse(Feedback):
    """Sends a fixed number of each vector's entries: k = max(1, round(fraction x width)) of them."""

    fraction: float = 0.01
    """Fraction of the entries that is sent."""

    def __post_init__(self) -> None:
        require(
            0 < self.fraction <= 1, f"uplink.fraction={self.fraction}: the fraction of entries that is sent must be above 0 and at most 1"
        )

    def entries(self, width: int) -> int:
        """How many of `width` entries are sent."""
        return min(width, max(1, math.floor(self.fraction * width + 0.5)))
