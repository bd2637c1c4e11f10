"""Everyone, or a uniform sample."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fl_hydra.data.population import Indices
from fl_hydra.participation.base import Participation, participations
from fl_hydra.randomness import generator


@participations.register
@dataclass
class Everyone(Participation):
    """All clients, every round; what LocalSGD and centralized training do (C=1)."""

    name: str = "all"

    def cohort(self, sizes: Indices, m: int, seed: int, round: int) -> Indices:
        return np.flatnonzero(sizes)


@participations.register
@dataclass
class Uniform(Participation):
    """m of the clients, each equally likely, without replacement (McMahan et al. 2017, algorithm 1)."""

    name: str = "uniform"

    def cohort(self, sizes: Indices, m: int, seed: int, round: int) -> Indices:
        rng = generator(seed, "cohort", round)
        if sizes.min() > 0:
            return np.sort(rng.choice(len(sizes), m, replace=False))
        return np.sort(rng.choice(np.flatnonzero(sizes), m, replace=False))
