"""All clients, a uniform sample, or a skewed one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np

from fl_hydra.arrays import Indices, Reals
from fl_hydra.participation.base import LEAST, Cohort, Participation, Round, gumbel_top, participations, uniformly
from fl_hydra.randomness import generator


@participations.register
@dataclass
class Everyone(Participation):
    """All clients, every round; what LocalSGD and centralized training do (C=1)."""

    name: str = "all"

    suits_all: ClassVar[bool] = True
    even: ClassVar[bool] = True

    def cohort(self, round: Round) -> Cohort:
        return Cohort(round.clients)


@participations.register
@dataclass
class Uniform(Participation):
    """m of the clients, each equally likely, without replacement (McMahan et al. 2017, algorithm 1)."""

    name: str = "uniform"

    suits_all: ClassVar[bool] = True
    even: ClassVar[bool] = True

    def cohort(self, round: Round) -> Cohort:
        return Cohort(uniformly(round.clients, round.m, round.rng("cohort")))


@participations.register
@dataclass
class Skewed(Participation):
    """m of the clients with probabilities p ~ Dirichlet(gamma 1_K), drawn once for a run; without replacement.

    In each round the clients are drawn one by one from those left, in proportion to p. The smaller gamma, the fewer clients take most
    places; for a large gamma all are equally likely. Weights are at least the smallest normal float64: if fewer than m clients have more,
    all others are equally likely to complete the cohort.
    """

    name: str = "skewed"

    uses: ClassVar[frozenset[str]] = frozenset({"gamma"})

    def cohort(self, round: Round) -> Cohort:
        assert round.gamma is not None
        clients = round.clients
        weights = log_probabilities(round.gamma, len(round.sizes), round.seed)[clients]
        return Cohort(np.sort(clients[gumbel_top(weights, round.m, round.rng("cohort"))]))


def probabilities(gamma: float, K: int, seed: int, held_out: Indices) -> Reals:
    """How likely each client is to be drawn first in a round; float64 [K], 0 of those that are held out, int64."""
    drawn: Reals = np.exp(log_probabilities(gamma, K, seed))
    if len(held_out):
        drawn[held_out] = 0
        drawn /= drawn.sum()
    return drawn


@lru_cache(maxsize=64)
def log_probabilities(gamma: float, K: int, seed: int) -> Reals:
    """Logarithms of p ~ Dirichlet(gamma 1_K), a function of the seed; float64 [K], at least that of the smallest normal float64.

    log G(gamma) is drawn as log G(gamma + 1) + log(U) / gamma (Marsaglia and Tsang 2000), which does not underflow for
    small gamma. Shardings use another function (:func:`fl_hydra.sharding.proportions.log_dirichlet`), which differs in a limit, a floor and
    its random numbers; merging the two would change the cohorts of every skewed run.
    """
    rng = generator(seed, "participation")
    if np.isinf(gamma):
        return np.full(K, -np.log(K))
    with np.errstate(over="ignore"):
        logs = np.log(rng.standard_gamma(gamma + 1, K)) - rng.standard_exponential(K) / gamma
    logs -= logs.max() if np.isfinite(logs.max()) else 0.0
    logs -= np.log(np.exp(logs).sum() or 1.0)
    floored: Reals = logs.clip(min=LEAST)
    return floored
