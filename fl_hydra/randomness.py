"""Randomness as a function.

Every draw is a pure function of (seed, purpose, ids...), with ids such as the round, the client or the step. There is no
generator whose state could depend on what ran before, so results do not depend on the engine, on interruptions or on which
other client drew first, and resuming needs no saved generator.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_MASK = 0xFFFFFFFF


def key(seed: int, purpose: str, *ids: int) -> int:
    """A 128-bit integer that identifies one stream of draws: the BLAKE2b digest of its coordinates."""
    text = ":".join((str(seed), purpose, *map(str, ids)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")


def generator(seed: int, purpose: str, *ids: int) -> np.random.Generator:
    """A fresh counter-based generator (Philox) for one stream; equal coordinates give equal draws."""
    return np.random.Generator(np.random.Philox(key=key(seed, purpose, *ids)))


def hash_uniform(stream: Tensor, counter: Tensor) -> Tensor:
    """A 32-bit counter hash in integer tensor operations: the same numbers on a CPU and on a GPU.

    Two rounds of the "lowbias32" multiply-xorshift finaliser (Wellons 2018, Hash function prospector): one over the
    counter, one over the result mixed with the stream.

    Args:
        stream: int64, values in [0, 2**32): which stream; broadcast against `counter`.
        counter: int64: position in the stream.

    Returns:
        int64 tensor of the broadcast shape, uniform on [0, 2**32).
    """
    return _finalise(_finalise(counter & _MASK) ^ stream ^ ((counter >> 32) & _MASK))


def hash_normal(stream: int, count: int, device: torch.device) -> Tensor:
    """Independent standard normal numbers by the Box-Muller transform of :func:`hash_uniform`; float64 [count].

    On a CPU and on a GPU they agree but for the last bits of logarithms and sines. None is beyond 6.8 in absolute value.
    """
    import torch

    pairs = torch.arange(-(-count // 2), device=device)
    which = torch.tensor(stream, device=device)
    one, other = ((hash_uniform(which, 2 * pairs + half).double() + 0.5) / 2**32 for half in (0, 1))
    radius, angle = (-2 * one.log()).sqrt(), 2 * torch.pi * other
    return torch.cat([radius * angle.cos(), radius * angle.sin()])[:count]


def _finalise(x: Tensor) -> Tensor:
    x = (x ^ (x >> 16)) * 0x7FEB352D & _MASK
    # The second multiplier exceeds 31 bits: its product with 32 bits may wrap in int64, which leaves the low 32 bits right.
    x = (x ^ (x >> 15)) * 0x846CA68B & _MASK
    return x ^ (x >> 16)
