"""Independent, identically distributed shards."""

from __future__ import annotations

from dataclasses import dataclass

from fl_hydra.data.sample_owners import SampleOwners
from fl_hydra.randomness import generator
from fl_hydra.sharding.base import Sharding, Shards, equal_sizes, shardings


@shardings.register
@dataclass
class IID(Sharding):
    """A random permutation of all samples, cut into K pieces whose sizes differ by at most one."""

    name: str = "iid"

    def shards(self, sample_owners: SampleOwners, K: int, N_c: int | None, seed: int) -> Shards:
        return Shards.from_sizes(generator(seed, "shards").permutation(sample_owners.total), equal_sizes(sample_owners.total, K))
