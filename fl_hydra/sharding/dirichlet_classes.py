"""Label skew by a Dirichlet draw for each class (Yurochkin et al. 2019)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from fl_hydra.arrays import Indices, Reals
from fl_hydra.data.sample_owners import SampleCounts, SampleOwners
from fl_hydra.errors import UserError
from fl_hydra.randomness import generator
from fl_hydra.sharding.base import Sharding, Shards, class_counts, deal, equal_sizes, require_min_size, shardings
from fl_hydra.sharding.proportions import MOST, in_proportion, log_dirichlet, log_sum, require_alpha

DRAWS, FEW_DRAWS = 100, 20
"""Most draws of all clients: for a request before it is refused, and for each alternative that might be offered."""

IN_VAIN = 1e-3
"""Drawing stops when the probability of success is below this."""

SWEEPS = 500


@shardings.register
@dataclass
class DirichletClasses(Sharding):
    """The samples of each class are divided among the K clients in proportions drawn from Dir(alpha, ..., alpha).

    Yurochkin et al. 2019, "Bayesian nonparametric federated learning of neural networks" (arXiv 1905.12022), section 4; also the
    split of NIID-Bench (Li et al. 2022, arXiv 2102.02079), FedML and others. Their code also gives a client no more once it has
    an equal share, which makes the result depend on the order of classes and is not in the papers; this code does not.

    alpha is the concentration of each client in each class: it is not the alpha of `sharding=dirichlet`. With 100 clients and
    100 classes, 0.5 is close to iid here, and gives about 5 classes per client there.

    Sizes are free, and all clients are drawn again while one has fewer than `min_size` samples. With `equal`, sizes differ by at
    most one: rows and columns of the table of clients and classes are scaled to equal sizes and the classes' totals (iterative
    proportional fitting, which keeps its odds ratios and changes it least in relative entropy), then rounded.
    """

    name: str = "dirichlet_classes"
    alpha: float = 0.5
    """Concentration of each client in each class; 0.5 is close to iid with 100 clients and classes. Not that of dirichlet."""
    min_size: int = 1
    """Fewest samples of a client; clients are drawn again until all have them."""
    equal: bool = False
    """Whether all clients have equally many samples (±1)."""

    def __post_init__(self) -> None:
        require_alpha(self.name, self.alpha)
        require_min_size(self.min_size)

    @property
    def tag(self) -> str:
        return f"classalpha{self.alpha:g}{'eq' if self.equal else ''}"

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), **({"min_size": None} if self.equal else {})}

    def check(self, sample_counts: SampleCounts, K: int, N_c: int | None, seed: int) -> None:
        super().check(sample_counts, K, N_c, seed)
        counts = class_counts(sample_counts, self.name)
        drawn = self.divide(counts, K, seed)
        if not self.equal and drawn.least < self.min_size:
            each = "1 draw" if drawn.draws == 1 else f"each of {drawn.draws} draws"
            clients = "a client" if drawn.short == 1 else f"{drawn.short} clients or more"
            raise UserError(
                f"K={K} sharding.alpha={self.alpha:g} sharding.min_size={self.min_size}: in {each} {clients} had fewer samples; "
                f"{self._what_works(counts, K, seed, drawn.least)}"
            )

    def shards(self, sample_owners: SampleOwners, K: int, N_c: int | None, seed: int) -> Shards:
        assert sample_owners.labels is not None
        counts = np.bincount(sample_owners.labels)
        self.check(SampleCounts.of_classes(counts), K, N_c, seed)
        return deal(sample_owners.labels, self.divide(counts, K, seed).taken, seed)

    def least_size(self, total: int, K: int) -> int:
        return super().least_size(total, K) if self.equal else self.min_size

    def divide(self, counts: Indices, K: int, seed: int, draws: int = DRAWS) -> Drawn:
        """How many samples of each class go to each client, after at most `draws` draws. counts: int64 [classes]."""
        return _divide(self.alpha, self.min_size, self.equal, tuple(counts.tolist()), K, seed, draws)

    def _what_works(self, counts: Indices, K: int, seed: int, most: int) -> str:
        """Nearby settings that work with this seed; each changes one value only."""

        def works(alpha: float, K: int, min_size: int) -> bool:
            return DirichletClasses(alpha=alpha, min_size=min_size).divide(counts, K, seed, FEW_DRAWS).least >= min_size

        alphas = [alpha for power in range(1, 12) if (alpha := float(f"{self.alpha * 2**power:.3g}")) <= MOST]
        if alphas and not works(alphas[-1], K, self.min_size):
            alphas = []  # if the most even does not work, none does
        enough = next((alpha for alpha in alphas if works(alpha, K, self.min_size)), None)
        fewer = next((K >> power for power in range(1, K.bit_length()) if works(self.alpha, K >> power, self.min_size)), None)
        options = [f"sharding.alpha={enough:g}"] if enough else []
        options += [f"K={fewer}"] if fewer else []
        options += [f"sharding.min_size={most}"] if most >= 1 else []
        return f"choose {', '.join([*options, ''])[:-2]} or sharding.equal=true" if options else "choose sharding.equal=true"


@dataclass(frozen=True)
class Drawn:
    """The best of all draws.

    taken: samples of each class for each client, int64 [K, classes]. least: samples of the smallest client. draws: how many there
    were. short: clients with fewer than `min_size` samples, in the draw that had the fewest of them.
    """

    taken: Indices
    least: int
    draws: int
    short: int


@lru_cache(maxsize=2)
def _divide(alpha: float, min_size: int, equal: bool, counts: tuple[int, ...], K: int, seed: int, draws: int) -> Drawn:
    """The first draw in which every client has enough samples, or the best of at most `draws`; drawing stops early if it is futile.

    Clients are short of samples nearly independently: the more one has, the less is left for others. If n clients are short on average,
    the probability that none is short is at most exp(-n). So a few draws can show that a hundred will not do; to be safe, their estimate
    of n is lowered by three of its standard deviations.
    """
    present, totals = np.flatnonzero(counts), np.array(counts, np.int64)
    best, fewest, all_short = None, K, 0
    for draw in range(draws):
        rng = generator(seed, "shards-dirichlet-classes", draw)
        log_shares = log_dirichlet(rng, np.full((len(present), K), alpha))
        drawn = (_balanced if equal else _free)(rng, log_shares, totals[present])
        sizes = drawn.sum(0)
        if best is None or sizes.min() > best.sum(0).min():
            best = drawn
        short = int((sizes < min_size).sum())
        if not short or equal:
            break
        fewest, all_short = min(fewest, short), all_short + short
        mean = all_short / (draw + 1)
        if (draws - draw - 1) * math.exp(3 * math.sqrt(mean / (draw + 1)) - mean) < IN_VAIN:
            break
    assert best is not None
    taken = np.zeros((K, len(counts)), np.int64)
    taken[:, present] = best.T
    return Drawn(taken, int(best.sum(0).min()), draw + 1, fewest if short else 0)


def _free(rng: np.random.Generator, log_shares: Reals, counts: Indices) -> Indices:
    """Whole numbers close to the shares, int64 [classes, K], from the arguments of :func:`_balanced`."""
    return in_proportion(rng, np.exp(log_shares), counts)


def _balanced(rng: np.random.Generator, log_shares: Reals, counts: Indices) -> Indices:
    """Whole numbers close to the shares. Their sums over classes are equal (±1), their sums over clients the classes' totals.

    Args:
        rng: for the rounding.
        log_shares: float64 [classes, K], logarithms of each client's share of each class.
        counts: int64 [classes], all above 0.

    Returns:
        int64 [classes, K].
    """
    sizes = equal_sizes(int(counts.sum()), log_shares.shape[1])
    log_table = log_shares + np.log(counts)[:, None]
    # In logarithms, because proportions underflow at small alpha. Convergence is slow there, so sweeps are bounded.
    for _ in range(SWEEPS):
        log_sizes = log_sum(log_table, 0)
        if np.abs(np.exp(log_sizes) - sizes).max() < 0.5:
            break
        log_table += np.log(sizes) - log_sizes
        log_table += np.log(counts)[:, None] - log_sum(log_table, 1)
    table = np.exp(log_table)
    taken = in_proportion(rng, table / table.sum(1, keepdims=True), counts)
    # Rounding leaves sizes slightly off. Until all are right, the client most above its size gives one sample to the one
    # most below, of the class where that brings both closest to the table.
    excess = taken.sum(0) - sizes
    while excess.any():
        giver, taker = int(excess.argmax()), int(excess.argmin())
        over = taken - table
        gain = np.where(taken[:, giver] > 0, over[:, giver] - over[:, taker], -np.inf)
        label = int(gain.argmax())
        taken[label, giver] -= 1
        taken[label, taker] += 1
        excess[giver] -= 1
        excess[taker] += 1
    return taken
