"""The largest entries, with error feedback (Stich, Cordonnier and Jaggi, NeurIPS 2018; Karimireddy et al., ICML 2019, algorithm 2)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fl_hydra.errors import require
from fl_hydra.optim.base import SlotWidth
from fl_hydra.uplinks.base import Uplink, uplinks

if TYPE_CHECKING:
    from torch import Tensor

INDEX_BYTES = 4


@uplinks.register
@dataclass
class TopK(Uplink):
    """Sends the `fraction` of each vector's entries that are largest in absolute value; what is not sent is added to the next vector.

    p <- change + error;  sent <- top_k(p);  error <- p - sent, with k = max(1, round(fraction x width)). Each entry takes its value
    and a 4-byte index. A client keeps its error from one of its rounds to the next.
    """

    name: str = "topk"
    fraction: float = 0.01
    """Fraction of the entries that is sent."""
    error_feedback: bool = True
    """Whether what is not sent is added to the next vector; false: it is lost."""

    def __post_init__(self) -> None:
        require(
            0 < self.fraction <= 1, f"uplink.fraction={self.fraction}: the fraction of entries that is sent must be above 0 and at most 1"
        )

    @property
    def slots(self) -> dict[str, SlotWidth]:
        return {"error": "row"} if self.error_feedback else {}

    def entries(self, width: int) -> int:
        """How many of `width` entries are sent."""
        return min(width, max(1, math.floor(self.fraction * width + 0.5)))

    def encode(self, vectors: Tensor, slots: dict[str, Tensor], streams: Tensor) -> None:
        if self.error_feedback:
            vectors.add_(slots["error"])
            slots["error"].copy_(vectors)
        largest = vectors.abs().topk(self.entries(vectors.shape[1]), dim=1).indices
        kept = vectors.gather(1, largest)
        vectors.zero_().scatter_(1, largest, kept)
        if self.error_feedback:
            slots["error"].sub_(vectors)

    def size(self, width: int, each: int) -> int:
        entries = self.entries(width) if width else 0
        return min(entries * (each + INDEX_BYTES), width * each)
