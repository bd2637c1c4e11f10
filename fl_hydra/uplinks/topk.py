"""The largest entries, with error feedback (Stich, Cordonnier and Jaggi, NeurIPS 2018; Karimireddy et al., ICML 2019, algorithm 2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fl_hydra.uplinks.base import uplinks
from fl_hydra.uplinks.feedback import Sparse

if TYPE_CHECKING:
    from torch import Tensor

INDEX_BYTES = 4


@uplinks.register
@dataclass
class TopK(Sparse):
    """Sends the `fraction` of each vector's entries that are largest in absolute value; what is not sent is added to the next vector.

    Each entry takes its value and a 4-byte index.
    """

    name: str = "topk"

    def compress(self, vectors: Tensor, streams: Tensor) -> None:
        largest = vectors.abs().topk(self.entries(vectors.shape[1]), dim=1).indices
        kept = vectors.gather(1, largest)
        vectors.zero_().scatter_(1, largest, kept)

    def size(self, width: int, each: int) -> int:
        return min(self.entries(width) * (each + INDEX_BYTES), width * each)
