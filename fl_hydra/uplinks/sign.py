"""Signs with one scale, and error feedback (Karimireddy, Rebjock, Stich and Jaggi, ICML 2019, algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fl_hydra.uplinks.base import uplinks
from fl_hydra.uplinks.feedback import Feedback

if TYPE_CHECKING:
    from torch import Tensor


@uplinks.register
@dataclass
class Sign(Feedback):
    """Sends the sign of each entry, and the mean of their absolute values: sent = mean |p| sign(p), where the sign of 0 is 1.

    An entry takes a bit, and the scale a number of the weights' precision. The authors scale each layer; here it is the whole vector.
    """

    name: str = "sign"

    def compress(self, vectors: Tensor, streams: Tensor) -> None:
        import torch

        scale = vectors.abs().mean(1, keepdim=True)
        vectors.copy_(torch.where(vectors < 0, -scale, scale))

    def size(self, width: int, each: int) -> int:
        return -(-width // 8) + each if width else 0
