"""Training samples that no client has: a server's public data."""

from __future__ import annotations

import numpy as np

from fl_hydra.arrays import Indices
from fl_hydra.data.sample_owners import SampleCounts, SampleOwners
from fl_hydra.randomness import generator


def public_counts(classes: Indices, count: int) -> Indices:
    """How many of `count` public samples are of each class, int64 [classes], in proportion to `classes`, by largest remainders."""
    wanted = classes * count
    own = wanted // classes.sum()
    own[np.argsort(-(wanted % classes.sum()), kind="stable")[: count - int(own.sum())]] += 1
    return np.asarray(own, np.int64)


def without_public(counts: SampleCounts, count: int) -> SampleCounts:
    """The counts of the other samples."""
    if not count or counts.classes is None:
        return counts
    return SampleCounts(counts.total - count, counts.classes - public_counts(counts.classes, count), counts.users)


def public_samples(owners: SampleOwners, count: int, seed: int) -> Indices:
    """`count` labelled samples, of each class in proportion, int64 [count], ascending.

    Args:
        seed: decides which of each class.
    """
    if not count or owners.labels is None:
        return np.zeros(0, np.int64)
    labels = owners.labels
    own = public_counts(np.bincount(labels), count)
    chosen = [generator(seed, "public", label).permutation(np.flatnonzero(labels == label))[:some] for label, some in enumerate(own)]
    return np.sort(np.concatenate(chosen)).astype(np.int64)
