"""Quantity skew: clients with the same distribution of samples, and unequal numbers of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fl_hydra.data.sample_owners import SampleOwners
from fl_hydra.randomness import generator
from fl_hydra.sharding.base import Sharding, Shards, require_min_size, shardings
from fl_hydra.sharding.proportions import in_proportion, log_dirichlet, require_alpha


@shardings.register
@dataclass
class Quantity(Sharding):
    """A random permutation of all samples, cut into pieces whose sizes are in proportions drawn from Dir(alpha, ..., alpha).

    NIID-Bench (Li et al. 2022, arXiv 2102.02079), section 4.3, quantity skew. Every client first gets `min_size` samples, then the
    rest is divided: this always works, whereas drawing again until the smallest is large enough hardly ever does.
    """

    name: str = "quantity"
    alpha: float = 0.5
    """Concentration of clients' sizes: the smaller, the more unequal."""
    min_size: int = 1
    """Fewest samples of a client."""

    def __post_init__(self) -> None:
        require_alpha(self.name, self.alpha)
        require_min_size(self.min_size)

    @property
    def tag(self) -> str:
        return f"quantity{self.alpha:g}"

    def least_size(self, total: int, K: int) -> int:
        return self.min_size

    def shards(self, sample_owners: SampleOwners, K: int, N_c: int | None, seed: int) -> Shards:
        rng = generator(seed, "shards-quantity")
        shares = np.exp(log_dirichlet(rng, np.full((1, K), self.alpha)))
        sizes = self.min_size + in_proportion(rng, shares, np.array([sample_owners.total - K * self.min_size]))[0]
        return Shards.from_sizes(generator(seed, "shards").permutation(sample_owners.total), sizes)
