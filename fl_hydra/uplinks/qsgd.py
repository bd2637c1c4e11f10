"""Stochastic quantization (QSGD: Alistarh, Grubic, Li, Tomioka and Vojnovic, NeurIPS 2017, section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fl_hydra.errors import require
from fl_hydra.uplinks.base import Uplink, uplinks

if TYPE_CHECKING:
    from torch import Tensor

DRAWS = 2**24
"""Numbers of equal probability with which an entry is rounded: fp32 holds all of them exactly."""


@uplinks.register
@dataclass
class QSGD(Uplink):
    """Rounds each entry up or down to one of s levels of the norm, at random, so that its expectation is the entry.

    sent_i = |v| sign(v_i) (l + b) / s, where l = floor(s |v_i| / |v|), and b is 1 with probability s |v_i| / |v| - l, else 0. |v| is the
    Euclidean norm of a bucket, that is of `bucket` neighbouring entries. An entry takes the whole bits that 2 s + 1 values need,
    and each bucket a norm in the weights' precision; the paper's Elias code, which is shorter where most levels are 0, is not used. Draws
    are a function of (seed, round, client, entry).
    """

    name: str = "qsgd"
    levels: int = 7
    """Levels s above 0. An entry takes 2 bits with 1 level, 3 with 3, 4 with 7 and 8 with 127."""
    bucket: int | None = 512
    """Neighbouring entries with a norm of their own; null: all, as in the paper's analysis. The paper trains with 512."""

    def __post_init__(self) -> None:
        require(1 <= self.levels <= 32767, f"uplink.levels={self.levels}: choose 1 (2 bits an entry) to 32,767 (16 bits)")
        require(
            self.bucket is None or self.bucket >= 1, f"uplink.bucket={self.bucket}: at least 1 entry has a norm; null: all have one norm"
        )

    def encode(self, vectors: Tensor, slots: dict[str, Tensor], streams: Tensor) -> None:
        import torch
        from torch.nn.functional import pad

        from fl_hydra.randomness import hash_uniform

        rows, width = vectors.shape
        places = torch.arange(width, device=vectors.device)
        draws = (hash_uniform(streams[:, None], places) >> 8).to(vectors.dtype) / DRAWS
        length = self._length(width)
        buckets, draws = (pad(tensor, (0, -width % length)).view(rows, -1, length) for tensor in (vectors, draws))
        vectors.copy_(self.quantized(buckets, draws).view(rows, -1)[:, :width])

    def quantized(self, buckets: Tensor, draws: Tensor) -> Tensor:
        """Buckets [..., entries], quantized with `draws` in [0, 1) of the same shape."""
        norms = buckets.norm(dim=-1, keepdim=True)
        scaled = (buckets.abs() * (self.levels / norms.clamp(min=1e-30))).clamp(max=self.levels)
        lower = scaled.floor()
        levels = lower + (draws < scaled - lower)
        sent: Tensor = norms * buckets.sign() * levels / self.levels
        return sent

    def _length(self, width: int) -> int:
        """Entries of a bucket."""
        return max(1, min(width, self.bucket or width))

    def size(self, width: int, each: int) -> int:
        bits = (2 * self.levels).bit_length()
        return -(-width * bits // 8) + -(-width // self._length(width)) * each
