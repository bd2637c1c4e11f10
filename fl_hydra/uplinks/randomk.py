"""Random entries, with error feedback or without a bias (Stich, Cordonnier and Jaggi, NeurIPS 2018; Wangni et al., NeurIPS 2018)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fl_hydra.uplinks.base import uplinks
from fl_hydra.uplinks.feedback import Sparse

if TYPE_CHECKING:
    from torch import Tensor


@uplinks.register
@dataclass
class RandomK(Sparse):
    """Sends a random `fraction` of each vector's entries; what is not sent is added to the next vector.

    Without error feedback what is sent is multiplied by width / k, so that its expectation is the vector. Every set of k entries is
    equally likely, and is drawn from (seed, round, client): the server draws the same one, so that only values are sent and charged.
    """

    name: str = "randomk"

    def compress(self, vectors: Tensor, streams: Tensor) -> None:
        import torch

        from fl_hydra.randomness import hash_uniform

        width = vectors.shape[1]
        entries, places = self.entries(width), torch.arange(width, device=vectors.device)
        keys = hash_uniform(streams[:, None], places) << 31 | places  # of equal draws the later place is larger, on every device
        chosen = keys.topk(entries, dim=1).indices
        kept = vectors.gather(1, chosen)
        if not self.error_feedback:
            kept.mul_(width / max(1, entries))
        vectors.zero_().scatter_(1, chosen, kept)

    def size(self, width: int, each: int) -> int:
        return self.entries(width) * each
