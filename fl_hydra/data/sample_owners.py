"""What a division among clients, and what draws cohorts, needs to know of the training samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fl_hydra.arrays import Indices


@dataclass(frozen=True)
class SampleCounts:
    """How many training samples there are, as it is known before any data is read.

    total: all of them. classes: int64 [classes], samples of each class; None where samples have no label to be divided by (text).
    users: int64 [users], samples of each of the dataset's own users; None where it has none (images).
    """

    total: int
    classes: Indices | None = None
    users: Indices | None = None

    @classmethod
    def of_classes(cls, counts: Indices) -> SampleCounts:
        """Of labelled samples, int64 [classes], that belong to nobody."""
        return cls(int(counts.sum()), classes=np.asarray(counts, np.int64))


@dataclass(frozen=True)
class SampleOwners:
    """The training samples themselves: who owns each, and what it shows.

    total: how many. labels: int64 [total], classes; None for text. users: int64 [total], 0, 1, ..., the dataset's own users; None for
    images.
    """

    total: int
    labels: Indices | None = None
    users: Indices | None = None

    @classmethod
    def of_labels(cls, labels: Indices) -> SampleOwners:
        """Labelled samples that belong to nobody."""
        return cls(len(labels), labels=labels)
