"""What must be known of the training samples to divide them among clients and to draw cohorts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fl_hydra.arrays import Indices


@dataclass(frozen=True)
class SampleCounts:
    """How many training samples there are, known before any data are read.

    total: all of them. classes: int64 [classes], samples of each class; None if samples have no label to be divided by (text).
    users: int64 [users], samples of each of the dataset's own users; None if it has none (as most datasets of images).
    """

    total: int
    classes: Indices | None = None
    users: Indices | None = None

    @classmethod
    def of_classes(cls, counts: Indices) -> SampleCounts:
        """The counts of labelled samples, int64 [classes], that belong to no user."""
        return cls(int(counts.sum()), classes=np.asarray(counts, np.int64))


@dataclass(frozen=True)
class SampleOwners:
    """The training samples one by one: whose each is, and its label.

    total: how many. labels: int64 [total], classes; None for text. users: int64 [total], the dataset's own users, numbered from 0; None
    if it has none.
    """

    total: int
    labels: Indices | None = None
    users: Indices | None = None

    def some(self, which: Indices) -> SampleOwners:
        """Some of the samples, int64 [n]."""
        labels, users = (None if each is None else each[which] for each in (self.labels, self.users))
        return SampleOwners(len(which), labels, users)

    @classmethod
    def of_labels(cls, labels: Indices) -> SampleOwners:
        """Labelled samples that belong to no user."""
        return cls(len(labels), labels=labels)
