"""Counts of classes, and what a division of samples is."""

from __future__ import annotations

from typing import Any

import numpy as np

from fl_hydra.sharding.base import Shards

CIFAR_COUNTS = np.full(100, 450)
DIGIT_COUNTS = np.array([128, 131, 128, 131, 131, 131, 131, 129, 125, 130])


def labels_of(counts: Any) -> np.ndarray:
    return np.repeat(np.arange(len(counts)), counts)


def assert_partition(shards: Shards, total: int, K: int, equal: bool = True) -> None:
    assert sorted(shards.indices.tolist()) == list(range(total)), "disjoint and covering"
    assert len(shards.sizes) == K
    assert shards.sizes.min() >= 1
    assert not equal or shards.sizes.max() - shards.sizes.min() <= 1
