"""The dataset's own users."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fl_hydra.data.sample_owners import SampleCounts, SampleOwners
from fl_hydra.errors import UserError, require
from fl_hydra.sharding.base import Sharding, Shards, shardings


@shardings.register
@dataclass
class Natural(Sharding):
    """Client k is user k, with its samples in their order; nothing is drawn (LEAF, Caldas et al. 2018, arXiv 1812.01097).

    A single worker, as in centralized training, holds the samples of all users.
    """

    name: str = "natural"

    @property
    def tag(self) -> str:
        return "natural"

    def check(self, sample_counts: SampleCounts, K: int, N_c: int | None, seed: int) -> None:
        if sample_counts.users is None:
            raise UserError("sharding=natural: this dataset has no users of its own; choose sharding=iid, dirichlet or another")
        users = len(sample_counts.users)
        require(
            K in (1, users),
            f"K={K}: sharding=natural has a client for each of the {users} users of the dataset; choose K={users}, "
            + (f"dataset.users={K} " if sample_counts.classes is None else "")
            + "or sharding=iid",
        )
        super().check(sample_counts, K, N_c, seed)

    def shards(self, sample_owners: SampleOwners, K: int, N_c: int | None, seed: int) -> Shards:
        assert sample_owners.users is not None
        sizes = np.bincount(sample_owners.users, minlength=K) if K > 1 else np.array([sample_owners.total])
        return Shards.from_sizes(sample_owners.users.argsort(kind="stable"), sizes)
