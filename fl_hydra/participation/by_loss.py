"""Schemes that prefer clients with high losses: power-of-choice, active federated learning, Oort."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fl_hydra.arrays import Indices, Reals
from fl_hydra.errors import require
from fl_hydra.participation.base import (
    ClientStats,
    Cohort,
    Participation,
    Round,
    SchemeState,
    gumbel_top,
    logs,
    noted,
    participations,
    require_samples,
)


@participations.register
@dataclass
class PowerOfChoice(Participation):
    """Of d candidates, the m with the largest loss (Cho, Wang and Joshi 2020, "pi_pow-d").

    Candidates are drawn without replacement, in proportion to their data, and are sent the model to report their loss, which is charged.
    The cohort's updates have equal weights, as in the paper: the draw already accounts for data size. With d=m this is sampling by data
    size; with d=K it is the m largest losses. With `samples`, losses are computed on that many samples of each candidate, drawn for
    the round (the paper's cpow-d).
    """

    name: str = "power_of_choice"
    version: ClassVar[int] = 2
    d: int | None = None
    """Candidates; null: twice as many as are chosen, if there are so many clients."""
    samples: int | None = None
    """Samples of each candidate that its loss is computed on; null: all."""

    asks: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_samples(self.samples)

    def check(self, K: int, m: int, gamma: float | None) -> None:
        super().check(K, m, gamma)
        require(
            self.d is None or m <= self.d <= K,
            f"participation.d={self.d}: {m} of the candidates are taken, and there are K={K} clients; choose {m} to {K}",
        )

    def cohort(self, round: Round) -> Cohort:
        clients, m = round.clients, round.m
        d = min(2 * m if self.d is None else self.d, len(clients))
        candidates = clients[gumbel_top(logs(round.shares[clients]), d, round.rng("cohort"))]
        losses = _finite(round.losses(candidates, self.samples))
        # Equal losses: in the order of the draw.
        return Cohort(np.sort(candidates[np.argsort(-losses, kind="stable")[:m]]), np.full(m, 1 / m))


@participations.register
@dataclass
class ActiveFL(Participation):
    """Active federated learning (Goetz et al. 2019, algorithm 1): clients are drawn by the value of their data.

    Client k's value is sqrt(n_k) times its mean loss over its batches in the last round that it took part in, which costs nothing
    extra. Initially every client is queried for its loss, which is charged. The fraction alpha1 of all clients with the smallest values is
    excluded; of the others, (1 - alpha3) m are drawn with probabilities proportional to exp(alpha2 value); the rest of the cohort,
    alpha3 m, is drawn uniformly from all remaining clients. Ties are broken at random.
    """

    name: str = "afl"
    version: ClassVar[int] = 2
    alpha1: float = 0.75
    """Fraction of the clients that is excluded, those with the smallest values."""
    alpha2: float = 0.01
    """How much values matter: the inverse temperature of the softmax."""
    alpha3: float = 0.1
    """The fraction of the cohort that is drawn uniformly."""
    samples: int | None = None
    """Samples of each client that its first loss is computed on; null: all."""

    asks: ClassVar[bool] = True
    measures: ClassVar[frozenset[str]] = frozenset({"loss"})

    def __post_init__(self) -> None:
        super().__post_init__()
        require_samples(self.samples)
        require(0 <= self.alpha1 < 1, f"participation.alpha1={self.alpha1}: a fraction of the clients in [0, 1) is set aside")
        require(0 <= self.alpha2 < np.inf, f"participation.alpha2={self.alpha2}: an inverse temperature of 0 or more, and finite")
        require(0 <= self.alpha3 <= 1, f"participation.alpha3={self.alpha3}: a fraction of the cohort in [0, 1] is drawn uniformly")

    def cohort(self, round: Round) -> Cohort:
        clients, m, rng = round.clients, round.m, round.rng("cohort")
        remember = {}
        if "loss" not in round.memory:
            remember["loss"] = noted(round, "loss", clients, round.losses(clients, self.samples))
        values = np.sqrt(round.sizes[clients]) * _finite(remember.get("loss", round.recall("loss"))[clients])
        by_value = int(np.floor((1 - self.alpha3) * m + 1e-9))
        # Leave at least as many as are to be drawn, however few clients there are.
        aside = min(int(self.alpha1 * len(clients) + 1e-9), len(clients) - by_value)
        shuffled = rng.permutation(len(clients))
        kept = shuffled[np.argsort(values[shuffled], kind="stable")[aside:]]
        first = kept[gumbel_top(self.alpha2 * (values[kept] - values[kept].max(initial=-np.inf)), by_value, rng)]
        others = np.setdiff1d(np.arange(len(clients)), first)
        second = rng.choice(others, m - by_value, replace=False)
        return Cohort(np.sort(clients[np.concatenate([first, second])]), remember=remember)

    def observe(self, round: Round, ids: Indices, stats: ClientStats) -> SchemeState:
        return {"loss": noted(round, "loss", ids, stats["loss"])}


@participations.register
@dataclass
class Oort(Participation):
    """Guided participant selection (Lai et al., OSDI 2021, algorithm 1): fast clients with high losses, and unknown clients.

    In round R = 1, 2, ..., epsilon m places (epsilon falls from `epsilon` by `decay` in each round, down to `least_epsilon`) are for
    clients that never took part, drawn in proportion to their speed. The others are for known clients, by

        Util(i) = (U(i) + sqrt(0.1 ln R / L(i))) * (T / t_i)^alpha if client i is slower than T,   U(i) = |B_i| sqrt(mean of loss^2),

    with U(i) from the last round L(i) in which client i took part, clipped at the 95th percentile. Those above `cutoff` times the
    utility of the last place are drawn in proportion to it. If there are too few clients of either kind, the other kind gets more places.

    As in the authors' code, U is scaled from 0 (0.999 of the least) to 1 (the largest before clipping) before the uncertainty is added;
    otherwise U, in the hundreds, would hide it. `normalise=false` is the paper's listing as it stands. t_i are the run's
    simulated seconds (`speeds=`), T is their quantile `preferred`. Losses are those of the samples of the client's batches, before
    each step.

    The authors' code differs in five points: its pacer moves T during a run; clients that took part too often can be excluded;
    unknown clients are drawn in proportion to their data, less if they are slower than T, from a window of the best; epsilon has decayed
    once before the first round; and the cut-off refers to the utility of the first client beyond the places.
    """

    name: str = "oort"
    version: ClassVar[int] = 2
    epsilon: float = 0.9
    """Fraction of the first round's cohort that is reserved for clients that never took part."""
    decay: float = 0.98
    """Factor of that fraction after each round."""
    least_epsilon: float = 0.2
    """Lower limit of that fraction."""
    alpha: float = 2.0
    """Exponent of the penalty for slow clients."""
    cutoff: float = 0.95
    """Clients compete for the places if their utility is above this fraction of the last place's."""
    clip: float = 0.95
    """Utilities are clipped at this quantile of them."""
    preferred: float = 0.3
    """The quantile of the clients' durations that is the preferred one of a round."""
    normalise: bool = True
    """Whether statistical utilities are scaled to [0, 1], as in the authors' code; false: as in the paper's listing."""

    measures: ClassVar[frozenset[str]] = frozenset({"root_square"})

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("epsilon", "decay", "least_epsilon", "cutoff", "clip", "preferred"):
            require(0 <= getattr(self, key) <= 1, f"participation.{key}={getattr(self, key)}: a number in [0, 1] is needed")
        require(0 <= self.alpha < np.inf, f"participation.alpha={self.alpha}: must be 0 or more, and finite")

    def exploring(self, m: int, round: int) -> int:
        """How many of m places are for unknown clients in a round (counted from 0)."""
        epsilon = max(self.least_epsilon, self.epsilon * self.decay**round)
        return m - int(np.floor(m * (1 - epsilon) + 1e-9))

    def utilities(self, statistical: Reals, last: Reals, seconds: Reals, preferred: float, R: int) -> Reals:
        """Util(i) of known clients, float64 [n], from U(i), L(i) and t_i, float64 [n]."""
        utilities: Reals = np.minimum(statistical, quantile(statistical, self.clip))
        if self.normalise:
            low = 0.999 * statistical.min()
            utilities = (utilities - low) / max(statistical.max() - low, 1e-4)
        utilities += np.sqrt(0.1 * np.log(R) / last)
        utilities *= np.where(seconds > preferred, preferred / seconds, 1.0) ** self.alpha
        return utilities

    def cohort(self, round: Round) -> Cohort:
        clients, m, rng = round.clients, round.m, round.rng("cohort")
        last, seconds = round.recall("last")[clients], round.seconds[clients]
        known, unknown = np.flatnonzero(~np.isnan(last)), np.flatnonzero(np.isnan(last))
        explore = max(min(self.exploring(m, round.round), len(unknown)), m - len(known))
        exploit = m - explore
        explored = unknown[gumbel_top(-np.log(seconds[unknown]), explore, rng)]
        exploited = known[:0]
        if exploit:
            statistical = _finite(round.recall("utility")[clients][known])
            utilities = self.utilities(statistical, last[known], seconds[known], quantile(seconds, self.preferred), round.round + 1)
            least = self.cutoff * np.sort(utilities)[-exploit]
            above = np.flatnonzero(utilities >= least)
            exploited = known[above[gumbel_top(logs(utilities[above]), exploit, rng)]]
        return Cohort(np.sort(clients[np.concatenate([explored, exploited])]))

    def observe(self, round: Round, ids: Indices, stats: ClientStats) -> SchemeState:
        utility = round.sizes[ids] * stats["root_square"]
        return {"utility": noted(round, "utility", ids, utility), "last": noted(round, "last", ids, np.full(len(ids), round.round + 1.0))}


def quantile(values: Reals, fraction: float) -> float:
    """The value at position floor(n fraction), from 0, in ascending order."""
    return float(np.sort(values)[min(int(len(values) * fraction + 1e-9), len(values) - 1)])


def _finite(losses: Reals) -> Reals:
    """Replace the losses of a diverged model by large ones."""
    return np.nan_to_num(losses, nan=1e30, posinf=1e30).clip(max=1e30)
