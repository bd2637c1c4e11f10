"""What a sharding is."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np

from fl_hydra.data.population import Census, Indices, Population
from fl_hydra.errors import UserError, require
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

    @classmethod
    def from_sizes(cls, indices: Indices, sizes: Indices) -> Shards:
        """Cut `indices` into consecutive pieces of the given sizes."""
        return cls(indices, np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64))


def equal_sizes(total: int, parts: int) -> Indices:
    """`total` divided into `parts` whole numbers that differ by at most one; int64 [parts]."""
    return np.full(parts, total // parts, np.int64) + (np.arange(parts) < total % parts)


def class_counts(census: Census, name: str) -> Indices:
    """Samples of each class, int64 [classes].

    Raises:
        UserError: the samples have no classes.
    """
    if census.classes is None:
        raise UserError(
            f"sharding={name}: divides by label, and samples of this dataset have none; choose sharding=natural or sharding=iid"
        )
    return census.classes


@dataclass
class Sharding(Component):
    """A rule that divides training samples among K clients, by what they show, or whose they are, and the seed alone."""

    def check(self, census: Census, K: int, N_c: int | None, seed: int) -> None:
        """Raise before anything is loaded if the rule cannot be met.

        Args:
            census: of the training samples.

        Raises:
            UserError: naming what would work.
        """
        total = census.total
        require(1 <= K <= total, f"K={K}: each client needs a sample and there are {total}; choose K from 1 to {total}")

    @abstractmethod
    def shards(self, population: Population, K: int, N_c: int | None, seed: int) -> Shards:
        """Divide these samples among K clients."""


shardings: Registry[Sharding] = Registry("sharding", "fl_hydra.sharding")
