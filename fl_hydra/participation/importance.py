"""Importance sampling: clients with large updates are preferred, and reweighted so that the expected update is that of all clients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fl_hydra.arrays import Indices, Reals
from fl_hydra.errors import require
from fl_hydra.participation.base import ClientStats, Cohort, Participation, Round, SchemeState, noted, participations


@participations.register
@dataclass
class Importance(Participation):
    """Clients are drawn in proportion to |w_i U_i|, and their updates are divided by their inclusion probabilities.

    U_i is client i's update, w_i = n_i / n. These proportions minimise the variance (Chen, Horvath and Richtarik, TMLR 2022;
    Nemeth et al. 2022); it would need every client's current update, so the last known norm is used instead. Clients
    that never took part count as average.

    The design draws exactly m distinct clients with exact inclusion probabilities pi_i = m p_i, capped at 1 (the excess goes to the
    others): randomized systematic sampling (Madow 1949; Goodman and Kish 1950). With w + sum of (w_i / pi_i) U_i over the cohort
    (Horvitz and Thompson 1952) the expected update is the sum of w_i U_i over all clients, for any norms.
    """

    name: str = "importance"
    mixing: float = 0.2
    """Uniform fraction of p: p = (1 - mixing) |w_i U_i| / sum + mixing / K, so that no weight exceeds w_i K / (mixing m)."""

    measures: ClassVar[frozenset[str]] = frozenset({"norm"})
    weighs: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.mixing <= 1, f"participation.mixing={self.mixing}: above 0, so that everyone can be drawn, and at most 1")

    def cohort(self, round: Round) -> Cohort:
        clients, shares = round.clients, round.shares[round.clients]
        chances = self.chances(round.recall("norm")[clients] * shares, round.m)
        rng = round.rng("cohort")
        order = rng.permutation(len(clients))
        taken = np.sort(order[systematic(chances[order], rng.random())])
        return Cohort(clients[taken], shares[taken] / chances[taken])

    def chances(self, values: Reals, m: int) -> Reals:
        """Inclusion probabilities float64 [n] that sum to m, from values float64 [n]; NaN: unknown."""
        values = np.where(np.isfinite(values), values, np.nan)
        known = ~np.isnan(values)
        values = np.where(known, values, values[known].mean() if known.any() else 1.0)
        total = values.sum()
        p = np.full(len(values), 1 / len(values))
        return inclusion((1 - self.mixing) * values / total + self.mixing * p if 0 < total < np.inf else p, m)

    def observe(self, round: Round, ids: Indices, stats: ClientStats) -> SchemeState:
        return {"norm": noted(round, "norm", ids, stats["norm"])}


def inclusion(p: Reals, m: int) -> Reals:
    """Inclusion probabilities min(1, c p), float64 [n], with the c for which they sum to m; p above 0."""
    certain = np.zeros(len(p), np.bool_)
    while True:
        left = m - int(certain.sum())
        rest = np.where(certain, 0.0, p)
        scaled = rest * (left / rest.sum()) if left else rest
        more = ~certain & (scaled >= 1)
        if not more.any():
            found: Reals = np.where(certain, 1.0, scaled)
            return found
        certain |= more


def systematic(chances: Reals, start: float) -> Indices:
    """Lay intervals end to end, unit i's as long as its chance; the units whose interval contains one of start, start + 1, ...

    Args:
        chances: float64 [n], at most 1, summing to a whole number m. start: in [0, 1).

    Returns:
        int64 [m], ascending and distinct.
    """
    m = round(float(chances.sum()))
    ends = np.cumsum(chances)
    ends *= m / ends[-1]
    positions = np.searchsorted(ends, start + np.arange(m), side="right").clip(max=len(chances) - 1)
    # Rounding may put two points into one interval; a unit is never taken twice.
    for point in range(1, m):
        positions[point] = max(positions[point], positions[point - 1] + 1)
    overflow = positions[-1] - (len(chances) - 1) if m else 0
    if overflow > 0:
        positions = np.minimum(positions, len(chances) - m + np.arange(m))
    return positions
