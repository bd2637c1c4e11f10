"""Schemes in which clients are only available at times: in turns, or at times of the day."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fl_hydra.errors import require
from fl_hydra.participation.base import Cohort, Participation, Round, participations, uniformly
from fl_hydra.randomness import generator


@participations.register
@dataclass
class Cyclic(Participation):
    """Clients take turns in blocks, in an order that is drawn once for a run (Eichner et al., ICML 2019; Cho et al., ICML 2023).

    `blocks` is the number of blocks; while it is a block's turn, m of its clients are drawn uniformly in each round (Cho et al., algorithm
    1). If a block has fewer than m clients with samples, the next clients in the order complete the cohort. Without `blocks`, the cohort is
    the next m clients in the cyclic order, so that everyone takes part once per cycle.
    """

    name: str = "cyclic"
    blocks: int | None = None
    """Number of blocks; null: blocks of m clients, all of which take part."""
    turn: int = 1
    """Rounds of a block's turn."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.turn >= 1, f"participation.turn={self.turn}: a block's turn lasts at least 1 round")
        require(self.blocks is None or self.blocks >= 1, f"participation.blocks={self.blocks}: at least 1 block is needed")

    def check(self, K: int, m: int, gamma: float | None) -> None:
        super().check(K, m, gamma)
        require(
            self.blocks is None or K // self.blocks >= m,
            f"participation.blocks={self.blocks}: of K={K} clients, blocks would have {K // (self.blocks or 1)}, and {m} take part in a "
            f"round; choose at most {K // m} blocks",
        )

    def cohort(self, round: Round) -> Cohort:
        order = generator(round.seed, "participation").permutation(round.clients)
        n, turn = len(order), round.round // self.turn
        if self.blocks is None:
            return Cohort(np.sort(order[(turn * round.m + np.arange(round.m)) % n]))
        block = turn % self.blocks
        first, last = block * n // self.blocks, (block + 1) * n // self.blocks
        last = max(last, first + round.m)
        return Cohort(uniformly(order[np.arange(first, last) % n], round.m, round.rng("cohort")))


@participations.register
@dataclass
class Diurnal(Participation):
    """Clients follow a daily cycle: with phases a_k, uniform on [0, 1), client k is available in round r with probability
    (1 + sin 2 pi (r / period + a_k)) / 2.

    m of the available clients are drawn uniformly; if there are fewer, all of them take part, and others, drawn uniformly, complete the
    cohort, so that all rounds have equally many clients.

    A smooth form of the day of Eichner et al. (ICML 2019, "Semi-Cyclic Stochastic Gradient Descent").
    """

    name: str = "diurnal"
    period: float = 24.0
    """Rounds of a day."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(1 <= self.period < np.inf, f"participation.period={self.period}: a day has at least 1 round, and not infinitely many")

    def cohort(self, round: Round) -> Cohort:
        K, rng = len(round.sizes), round.rng("cohort")
        phases = generator(round.seed, "participation").random(K)
        chances = (1 + np.sin(2 * np.pi * (round.round / self.period + phases))) / 2
        there = (rng.random(K) < chances)[round.clients]
        # Available clients come first, each group in random order.
        ranks = rng.random(len(there)) + ~there
        return Cohort(np.sort(round.clients[np.argsort(ranks, kind="stable")[: round.m]]))
