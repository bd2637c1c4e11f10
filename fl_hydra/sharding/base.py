"""The base of shardings, and the shards that they make."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np

from fl_hydra.arrays import Indices
from fl_hydra.data.sample_owners import SampleCounts, SampleOwners
from fl_hydra.errors import UserError, require
from fl_hydra.randomness import generator
from fl_hydra.registry import Component, Registry


@dataclass(frozen=True)
class Shards:
    """Disjoint sets of training samples: client k holds `indices[offsets[k]:offsets[k + 1]]`.

    indices: int64 [N], positions in the training samples. offsets: int64 [K + 1].
    """

    indices: Indices
    offsets: Indices

    @property
    def sizes(self) -> Indices:
        """Samples of each client; int64 [K]."""
        return np.diff(self.offsets)

    def __getitem__(self, client: int) -> Indices:
        return self.indices[self.offsets[client] : self.offsets[client + 1]]

    def label_counts(self, labels: Indices, classes: int) -> Indices:
        """Samples of each class at each client, int64 [K, classes]; labels: of all training samples."""
        owners = np.repeat(np.arange(len(self.sizes)), self.sizes)
        flat = np.bincount(owners * classes + labels[self.indices], minlength=len(self.sizes) * classes)
        return flat.reshape(-1, classes)

    @classmethod
    def from_sizes(cls, indices: Indices, sizes: Indices) -> Shards:
        """Cut `indices` into consecutive pieces of the given sizes."""
        return cls(indices, np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64))


def equal_sizes(total: int, parts: int) -> Indices:
    """`total` divided into `parts` whole numbers that differ by at most one; int64 [parts]."""
    return np.full(parts, total // parts, np.int64) + (np.arange(parts) < total % parts)


def class_counts(sample_counts: SampleCounts, name: str) -> Indices:
    """Samples of each class, int64 [classes].

    Raises:
        UserError: the samples have no classes.
    """
    if sample_counts.classes is None:
        raise UserError(
            f"sharding={name}: divides by label, and samples of this dataset have none; choose sharding=natural or sharding=iid"
        )
    return sample_counts.classes


def deal(labels: Indices, taken: Indices, seed: int) -> Shards:
    """Give every client its samples of each class; the seed decides which ones.

    Args:
        labels: int64 [N], classes of all samples.
        taken: int64 [K, classes], samples of each class for each client; columns sum to the classes' totals.
        seed: of the draw.
    """
    order = []
    for label in range(taken.shape[1]):
        members = generator(seed, "shards-class", label).permutation(np.flatnonzero(labels == label))
        order.append(np.split(members, np.cumsum(taken[:, label])[:-1]))
    pieces = [order[label][client] for client in range(len(taken)) for label in range(taken.shape[1])]
    return Shards.from_sizes(np.concatenate(pieces).astype(np.int64), taken.sum(1))


def require_min_size(size: int) -> None:
    """Check `sharding.min_size`.

    Raises:
        UserError: it would allow clients without samples.
    """
    require(size >= 1, f"sharding.min_size={size}: every client needs at least 1 sample")


@dataclass
class Sharding(Component):
    """Divides training samples among K clients, as a function of their labels or owners and the seed alone."""

    @property
    def tag(self) -> str:
        """A word for this division in the names of runs; empty for even shards, and where N_c says it."""
        return ""

    def least_size(self, total: int, K: int) -> int:
        """Samples that every one of the K clients must have."""
        return 1

    def check(self, sample_counts: SampleCounts, K: int, N_c: int | None, seed: int) -> None:
        """Refuse an impossible division before anything is loaded.

        Args:
            sample_counts: of the training samples.

        Raises:
            UserError: naming what would work.
        """
        total = sample_counts.total
        require(1 <= K <= total, f"K={K}: each client needs a sample and there are {total}; choose K from 1 to {total}")
        least = self.least_size(total, K)
        require(
            K * least <= total,
            f"K={K} sharding.min_size={least}: {K * least} samples would be needed and there are {total}; choose sharding.min_size from "
            f"1 to {total // K}" + (f", or K from 1 to {total // least}" if least <= total else ""),
        )

    def revised(self, sample_counts: SampleCounts, K: int, N_c: int | None, seed: int) -> bool:
        """Whether these settings give other shards than in the first release, so that runs need another name."""
        return False

    @abstractmethod
    def shards(self, sample_owners: SampleOwners, K: int, N_c: int | None, seed: int) -> Shards:
        """Divide these samples among K clients."""


shardings: Registry[Sharding] = Registry("sharding", "fl_hydra.sharding")
