"""The dataset's own users."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fl_hydra.data.population import Census, Population
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

    def check(self, census: Census, K: int, N_c: int | None, seed: int) -> None:
        if census.users is None:
            raise UserError("sharding=natural: this dataset has no users of its own; choose sharding=iid, dirichlet or another")
        users = len(census.users)
        require(
            K in (1, users),
            f"K={K}: sharding=natural has a client for each of the {users} users of the dataset; choose K={users}, dataset.users={K} "
            "or sharding=iid",
        )
        super().check(census, K, N_c, seed)

    def shards(self, population: Population, K: int, N_c: int | None, seed: int) -> Shards:
        assert population.users is not None
        sizes = np.bincount(population.users, minlength=K) if K > 1 else np.array([population.total])
        return Shards.from_sizes(population.users.argsort(kind="stable"), sizes)
