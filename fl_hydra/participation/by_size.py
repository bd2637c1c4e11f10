"""Clients drawn in proportion to how many samples they hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fl_hydra.errors import require
from fl_hydra.participation.base import Cohort, Participation, Round, participations, uniformly
from fl_hydra.participation.importance import inclusion, systematic


@participations.register
@dataclass
class BySize(Participation):
    """m clients, each with probability pi_k = m n_k / n, whose models are averaged equally: on average this is the mean over all samples.

    A client with more than n / m samples is in every round and counts as the m n_k / n equal clients that it could be split into; the
    others share the rest. Weights are thus n_k / (n pi_k), which sum to 1. Draws are those of randomized systematic sampling, as in
    `importance`; where all clients are of one size, they are those of `uniform`.
    """

    name: str = "by_size"

    draws_by_size: ClassVar[bool] = True

    def check(self, K: int, m: int, gamma: float | None) -> None:
        require(m < K, f"participation={self.name}: chooses {m} of {K} clients, which leaves no choice; take part of them (C=0.1, say)")
        super().check(K, m, gamma)

    def cohort(self, round: Round) -> Cohort:
        clients, shares, rng = round.clients, round.shares[round.clients], round.rng("cohort")
        if np.ptp(shares) == 0:
            return Cohort(uniformly(clients, round.m, rng))
        chances, order = inclusion(shares, round.m), rng.permutation(len(clients))
        taken = np.sort(order[systematic(chances[order], rng.random())])
        return Cohort(clients[taken], shares[taken] / chances[taken])
