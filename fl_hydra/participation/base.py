"""The base of participation schemes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from fl_hydra.arrays import Indices, Reals
from fl_hydra.errors import require
from fl_hydra.participation.held_out import left_of, members, spans, spelled
from fl_hydra.randomness import generator
from fl_hydra.registry import Component, Registry, as_before

SchemeState = Mapping[str, Reals]
"""What a scheme keeps from round to round: float64 [..., K] by name; part of every checkpoint."""

Losses = Callable[[Indices, int | None], Reals]
"""Mean losses of the run's current model over the targets of some clients' training samples, not augmented; int64 [n] -> float64 [n].

The second argument is the number of samples of each client, drawn for the round; None: all. The query is charged: a model for each client
outside the cohort, a forward pass per sample, and the simulated seconds of the slowest client. The number that a client sends back is
too small to charge.
"""

ClientStats = Mapping[str, Reals]
"""Measurements of each client that reported: float64 [n] by the names in `measures`."""

CLIENT_STATS = ("loss", "root_square", "norm")
"""What can be measured: the mean loss over a client's batches of the round, the root mean square of its samples' losses, and the
norm of its update, |w_k - w|."""


def no_losses(ids: Indices, samples: int | None) -> Reals:
    """For use where there is no model to evaluate."""
    raise ValueError("there is no model here whose losses could be asked for")


@dataclass(frozen=True)
class Round:
    """A scheme's view of the round whose cohort it draws.

    sizes: int64 [K], samples of each client, and 0 of those that are held out; clients without samples are never drawn. m: how many take
    part. seed: of the run. round: its number, from 0. gamma: the top-level key; None if the scheme does not use it.
    seconds: float64 [K], simulated seconds of each client's computation in the round. memory: the scheme's memory; initially empty,
    read-only here. losses: queries clients for the loss of the current model.
    """

    sizes: Indices
    m: int
    seed: int
    round: int
    gamma: float | None = None
    seconds: Reals = field(default_factory=lambda: np.ones(0))
    memory: SchemeState = field(default_factory=dict)
    losses: Losses = no_losses

    @property
    def clients(self) -> Indices:
        """The clients with samples; int64, ascending."""
        return np.flatnonzero(self.sizes)

    @property
    def shares(self) -> Reals:
        """Each client's fraction of all samples, float64 [K]."""
        shares: Reals = self.sizes / self.sizes.sum()
        return shares

    def recall(self, name: str) -> Reals:
        """The remembered values of this name, float64 [K]; NaN for clients without one."""
        return self.memory[name] if name in self.memory else np.full(len(self.sizes), np.nan)

    def rng(self, purpose: str) -> np.random.Generator:
        """A generator for this round and purpose."""
        return generator(self.seed, purpose, self.round)


@dataclass(frozen=True)
class Cohort:
    """The clients that take part in a round.

    ids: int64 [m], distinct and ascending. weights: float64 [m], with which their updates w_k - w are summed; None: by data size.
    They need not sum to 1. remember: changes to the memory, by name.
    """

    ids: Indices
    weights: Reals | None = None
    remember: SchemeState = field(default_factory=dict)


@dataclass
class Participation(Component):
    """A scheme that draws the cohort of a round.

    To add one: subclass it with `@participations.register` and override `cohort`; name in `measures` what should be measured, if
    anything, and override `observe` to use it. A cohort is a function of (seed, round, memory) alone, so a run can be resumed anywhere.
    """

    dropout: float = 0.0
    """Probability that a client that has trained drops out before it reports, independently of others. Its update is lost and nothing is
    sent up, but its samples count in the budget, since they were computed. The others' weights grow in proportion; if nobody is left, the
    model stays as it is. State that a method keeps for its clients is what it was before the round."""
    held_out: str | None = field(default=None, metadata=as_before(None))
    """Clients that are never drawn, as 90-99 or 3|7|90-99; where clients are judged, they are so too, after `evaluation.joining_steps`."""

    measures: ClassVar[frozenset[str]] = frozenset()
    """The `CLIENT_STATS` that are read back for every client after each round."""

    asks: ClassVar[bool] = False
    """Whether clients are queried for losses before they are chosen."""

    suits_all: ClassVar[bool] = False
    """Whether the scheme also makes sense when everyone takes part; others refuse C=1, which leaves them no choice."""

    even: ClassVar[bool] = False
    """Whether all sets of m clients are equally likely in every round, whatever happened before."""
    draws_by_size: ClassVar[bool] = False
    """Whether clients are drawn in proportion to their numbers of samples, and averaged equally."""

    weighs: ClassVar[bool] = False
    """Whether its weights need not sum to 1; then only methods that use nothing but a round's weighted mean can use the scheme."""

    def __post_init__(self) -> None:
        require(0 <= self.dropout < 1, f"participation.dropout={self.dropout}: a probability in [0, 1) is needed")
        if self.held_out is not None:
            self.held_out = spelled(spans(self.held_out))

    @property
    def kept_away(self) -> Indices:
        """The clients that are held out; int64, ascending."""
        return members(() if self.held_out is None else spans(self.held_out))

    def drawable(self, K: int, m: int) -> int:
        """How many of K clients may be drawn, of which a round needs m.

        Raises:
            UserError: clients are held out that do not exist, or too few are left.
        """
        if self.held_out is None:
            return K
        require(spans(self.held_out)[-1][1] < K, f"participation.held_out={self.held_out}: there are clients 0 to {K - 1}")
        left = left_of(K, self.held_out)
        require(
            left > 0, f"participation.held_out={self.held_out}: all {K} clients are held out, and nobody is left to train; hold out fewer"
        )
        most = f"C={left / K:g}" + (" with participation=uniform" if self.name == "all" else "")
        require(
            m <= left,
            f"participation.held_out={self.held_out}: {left} of {K} clients are left, and {m} take part in a round; choose at most {most}, "
            "or hold out fewer",
        )
        return left

    def seen_sizes(self, sizes: Indices) -> Indices:
        """Samples of each client, int64 [K], as the scheme sees them: those that are held out have none."""
        if self.held_out is None:
            return sizes
        seen = sizes.copy()
        seen[self.kept_away] = 0
        return seen

    def check(self, K: int, m: int, gamma: float | None) -> None:
        """Refuse values that the scheme does not support. K: the clients that may be drawn.

        Raises:
            UserError: naming what works.
        """
        require(gamma is not None or "gamma" not in self.uses, f"participation={self.name}: needs a concentration; add gamma=0.5, say")
        require(
            m < K or self.suits_all,
            f"participation={self.name}: chooses {m} of {K} clients, which leaves no choice; take part of them (C=0.1, say), "
            "or choose participation=all",
        )

    @abstractmethod
    def cohort(self, round: Round) -> Cohort:
        """The clients of a round."""

    def observe(self, round: Round, ids: Indices, stats: ClientStats) -> SchemeState:
        """Changes to the memory, by name, after a round in which these clients, int64 [n], reported."""
        return {}

    def reports(self, ids: Indices, seed: int, round: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Which clients of a round, int64 [m], do not drop out; bool [m], each a function of (seed, round, client)."""
        if not self.dropout:
            return np.ones(len(ids), np.bool_)
        return generator(seed, "dropout", round).random(int(ids.max()) + 1)[ids] >= self.dropout


participations: Registry[Participation] = Registry("participation", "fl_hydra.participation")


def require_samples(samples: int | None) -> None:
    """Refuse a number of samples that is out of range.

    Raises:
        UserError: naming what works.
    """
    require(
        samples is None or 1 <= samples <= 10**9,
        f"participation.samples={samples}: choose 1 to 1,000,000,000 samples of a client, or leave it out for all",
    )


def noted(round: Round, name: str, ids: Indices, values: Reals) -> Reals:
    """The remembered values of this name, float64 [K], updated with `values` float64 [n] of some clients, int64 [n]."""
    array = round.recall(name).copy()
    array[ids] = values
    return array


def gumbel_top(log_weights: Reals, count: int, rng: np.random.Generator) -> Indices:
    """`count` positions, drawn one by one without replacement, with probabilities proportional to their weights.

    The largest of log w + Gumbel noise, in descending order, have exactly this distribution (Yellott 1977; Kool et al., ICML 2019).
    With logarithms no weight is too small.

    Args:
        log_weights: float64 [n], finite.

    Returns:
        int64 [count], in the order in which they were drawn.
    """
    return np.argsort(-(log_weights + rng.gumbel(size=len(log_weights))), kind="stable")[:count]


def uniformly(clients: Indices, count: int, rng: np.random.Generator) -> Indices:
    """`count` of these clients, each equally likely, without replacement; int64 [count], ascending."""
    return np.sort(rng.choice(clients, count, replace=False))


LEAST = float(np.log(np.finfo(np.float64).tiny))


def logs(weights: Reals) -> Reals:
    """Logarithms of weights that may be 0 or infinite, float64 [n], clipped to those of the smallest normal float64 and its inverse."""
    with np.errstate(divide="ignore"):
        found: Reals = np.log(np.nan_to_num(weights, nan=0.0)).clip(LEAST, -LEAST)
    return found
