"""What a participation scheme is."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np

from fl_hydra.data.population import Indices
from fl_hydra.errors import require
from fl_hydra.randomness import generator
from fl_hydra.registry import Component, Registry
from fl_hydra.speeds.base import Reals


@dataclass(frozen=True)
class Round:
    """What a scheme sees of the round whose cohort it draws.

    sizes: int64 [K], samples of each client; clients without samples are never drawn. m: how many take part. seed: of the run.
    round: its number, from 0. gamma: the top-level key; None where the scheme does not use it.
    """

    sizes: Indices
    m: int
    seed: int
    round: int
    gamma: float | None = None

    @property
    def clients(self) -> Indices:
        """Those with samples; int64, ascending."""
        return np.flatnonzero(self.sizes)


@dataclass(frozen=True)
class Cohort:
    """Who takes part in a round. ids: int64 [m], distinct and ascending."""

    ids: Indices


@dataclass
class Participation(Component):
    """A rule that draws the cohort of a round."""

    def check(self, K: int, m: int, gamma: float | None) -> None:
        """Refuse what the scheme cannot draw from.

        Raises:
            UserError: naming what works.
        """
        require(gamma is not None or "gamma" not in self.uses, f"participation={self.name}: needs a concentration; add gamma=0.5, say")

    @abstractmethod
    def cohort(self, round: Round) -> Cohort:
        """The clients of a round, a function of what it is told alone."""


participations: Registry[Participation] = Registry("participation", "fl_hydra.participation")


def gumbel_top(log_weights: Reals, count: int, rng: np.random.Generator) -> Indices:
    """`count` positions, one after the other without replacement, each time with probabilities in proportion to their weights.

    The largest of log w + Gumbel noise, in descending order, are distributed just so (Yellott 1977; Kool et al., ICML 2019, section 2.3).
    In logarithms no weight is too small.

    Args:
        log_weights: float64 [n], finite.

    Returns:
        int64 [count], in the order in which they were drawn.
    """
    return np.argsort(-(log_weights + rng.gumbel(size=len(log_weights))), kind="stable")[:count]


def uniformly(clients: Indices, count: int, seed: int, purpose: str, *ids: int) -> Indices:
    """`count` of these clients, each equally likely, without replacement; int64 [count], ascending."""
    return np.sort(generator(seed, purpose, *ids).choice(clients, count, replace=False))
