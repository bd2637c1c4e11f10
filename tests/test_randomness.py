"""Keyed draws."""

from __future__ import annotations

import numpy as np
import torch

from fl_hydra.randomness import generator, hash_uniform


def test_draws_depend_on_nothing_but_their_coordinates() -> None:
    assert generator(0, "order", 1, 2).integers(1 << 30) == generator(0, "order", 1, 2).integers(1 << 30)
    different = {int(generator(*where).integers(1 << 60)) for where in ((0, "a", 1), (0, "a", 2), (0, "b", 1), (1, "a", 1), (0, "a", 1, 1))}
    assert len(different) == 5


def test_hash_is_uniform_and_independent_between_neighbours() -> None:
    n = 200_000
    draws = hash_uniform(torch.full((n,), 12345), torch.arange(n)).numpy() / 2**32
    assert abs(draws.mean() - 0.5) < 5 / np.sqrt(12 * n)
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 5 / np.sqrt(n)
    other = hash_uniform(torch.full((n,), 12346), torch.arange(n)).numpy() / 2**32
    assert abs(np.corrcoef(draws, other)[0, 1]) < 5 / np.sqrt(n)
    histogram = np.bincount((draws * 64).astype(int), minlength=64)
    assert ((histogram - n / 64) ** 2 / (n / 64)).sum() < 63 + 5 * np.sqrt(2 * 63)
    assert 0 <= draws.min() <= draws.max() < 1


def test_hash_is_what_it_was() -> None:
    """Fixed numbers, worked out with unbounded integers: a change here changes every run."""

    def finalise(x: int) -> int:
        x = (x ^ (x >> 16)) * 0x7FEB352D % 2**32
        x = (x ^ (x >> 15)) * 0x846CA68B % 2**32
        return x ^ (x >> 16)

    counters = [0, 1, 77, 2**31, 2**32 - 1, 2**32 + 5]
    got = hash_uniform(torch.tensor(987654321), torch.tensor(counters)).tolist()
    assert got == [finalise(finalise(c % 2**32) ^ 987654321 ^ (c >> 32)) for c in counters]
