"""What a sharding is."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np

from fl_hydra.data.dataset import Indices
from fl_hydra.errors import require
from fl_hydra.registry import Component, Registry


@dataclass(frozen=True)
class Shards:
    """Disjoint sets of training images: client k holds `indices[offsets[k]:offsets[k + 1]]`.

    indices: int64 [N], positions in the training images. offsets: int64 [K + 1].
    """

    indices: Indices
    offsets: Indices

    @property
    def sizes(self) -> Indices:
        """Images of each client; int64 [K]."""
        return np.diff(self.offsets)

    def __getitem__(self, client: int) -> Indices:
        return self.indices[self.offsets[client] : self.offsets[client + 1]]

    @classmethod
    def from_sizes(cls, indices: Indices, sizes: Indices) -> Shards:
        """Cut `indices` into consecutive pieces of the given sizes."""
        return cls(indices, np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64))


def equal_sizes(total: int, parts: int) -> Indices:
    """`total` divided into `parts` whole numbers that differ by at most one; int64 [parts]."""
    return np.full(parts, total // parts, np.int64) + (np.arange(parts) < total % parts)


@dataclass
class Sharding(Component):
    """A rule that divides training images among K clients, by the labels and the seed alone."""

    def check(self, counts: Indices, K: int, N_c: int | None, seed: int) -> None:
        """Raise before anything is loaded if the rule cannot be met.

        Args:
            counts: int64 [classes], training images of each class.

        Raises:
            UserError: naming what would work.
        """
        total = int(counts.sum())
        require(1 <= K <= total, f"K={K}: each client needs an image and there are {total}; choose K from 1 to {total}")

    @abstractmethod
    def shards(self, labels: Indices, K: int, N_c: int | None, seed: int) -> Shards:
        """Divide the images with these labels, int64 [N], among K clients."""


shardings: Registry[Sharding] = Registry("sharding", "fl_hydra.sharding")
