"""When workers compute and meet: lists of events that are drawn before training, and how to run them in parallel.

Asynchronous methods take the steps of synchronous ones in another order. That order is a list of events, a function of the seed and the
speeds alone, never of the time a machine took. The unit of time of Poisson clocks is one gradient of a worker of speed 1, that of
periodic clocks is the unit of their cycles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from fl_hydra.arrays import Indices
from fl_hydra.decentralized.topologies import Floats, adjacency, edges
from fl_hydra.errors import require
from fl_hydra.randomness import generator

# Periodic clocks count whole ticks. The fastest cycle has this many, a multiple of all numbers up to 24.
_TICKS = 5_354_228_880

SLOWEST = 1_000_000
"""Largest ratio of the slowest cycle to the fastest at which the ticks of periodic clocks fit in int64."""


@dataclass(frozen=True)
class AcidConstants:
    """The constants of A2CiD2: 1 / algebraic connectivity, largest effective resistance, rate of mixing, step of the momentum copy."""

    chi1: float
    chi2: float
    eta: float
    alpha_tilde: float


def edge_rates(topology: str, K: int, rate: float = 1.0) -> Floats:
    """Meetings per second of each of `edges(topology, K)`; float64 [edges].

    Each worker starts `rate / 2` meetings per second, each with a neighbour drawn uniformly from its links, so the edge {i, j} meets at
    rate / 2 * (1 / degree_i + 1 / degree_j). In a regular graph every worker then has `rate` meetings per second, half of them started by
    the other, which is A2CiD2's rate * W_randomwalk. In a star a leaf has rate * K / (2 (K - 1)) and the centre rate * K / 2: the same
    total of rate * K / 2 meetings per second as in a regular graph.

    An exponential graph counts a neighbour twice if two of its steps reach it (`topologies.adjacency`). A2CiD2's code has the constants
    of this graph (K = 16: chi1 = 2, chi2 = 1.0097); counting such neighbours once would give chi1 = 1.75.

    Raises:
        UserError: a directed topology, which has no edges, a K that the topology cannot have, or a rate that is not positive.
    """
    i, j = np.array(edges(topology, K), np.int64).reshape(-1, 2).T
    rates: Floats = _meeting_rates(topology, K, rate)[i, j]
    return rates


@lru_cache(maxsize=64)
def acid_constants(topology: str, K: int, rate: float = 1.0) -> AcidConstants:
    """Constants of A2CiD2 (Nabli, Belilovsky & Oyallon 2023, arXiv 2306.08289).

    With the Laplacian L of `edge_rates`: chi1 = 1 / lambda_2(L), chi2 = max over edges of (e_i - e_j)^T L^+ (e_i - e_j) / 2,
    eta = 1 / (2 sqrt(chi1 chi2)) and alpha~ = sqrt(chi1 / chi2) / 2. The other step, alpha, is always 1/2.
    A single worker has no edges: chi1 = chi2 = 0, eta = 0, alpha~ = 1/2, which leaves plain SGD.

    Args:
        topology: an undirected one of `topologies.TOPOLOGIES`.
        K: number of workers.
        rate: meetings of a worker per second, that is per gradient of a worker of speed 1.

    Raises:
        UserError: see :func:`edge_rates`.
    """
    rates = _meeting_rates(topology, K, rate)
    if K == 1:
        return AcidConstants(chi1=0.0, chi2=0.0, eta=0.0, alpha_tilde=0.5)
    laplacian = np.diag(rates.sum(1)) - rates
    chi1 = float(1 / np.linalg.eigvalsh(laplacian)[1])
    # L + 11^T / K has the inverse L^+ + 11^T / K, with the same resistances, and no eigenvalue 0, whose rounded inverse could be huge.
    inverse = np.linalg.inv(laplacian + 1 / K)
    resistance = np.add.outer(np.diag(inverse), np.diag(inverse)) - 2 * inverse
    chi2 = float(resistance[rates > 0].max() / 2)
    return AcidConstants(chi1, chi2, eta=0.5 / (chi1 * chi2) ** 0.5, alpha_tilde=0.5 * (chi1 / chi2) ** 0.5)


def _meeting_rates(topology: str, K: int, rate: float) -> Floats:
    """The rates of `edge_rates` as a symmetric matrix; float64 [K, K]."""
    require(0 < rate < float("inf"), f"rate={rate}: workers must meet; choose a positive number of meetings per gradient")
    ways = adjacency(topology, K)
    started = ways / np.maximum(1, ways.sum(1, keepdims=True))
    both: Floats = rate / 2 * (started + started.T)
    return both


@dataclass(frozen=True)
class Events:
    """Events in order of time, as parallel arrays.

    times: float64 [n], seconds, ascending. worker: int64 [n]. peer: int64 [n], the other worker of a meeting, -1 where `worker` finishes
    a gradient.
    """

    times: Floats
    worker: Indices
    peer: Indices

    def __len__(self) -> int:
        return len(self.times)


def poisson_events(speeds: Floats, edges: Sequence[tuple[int, int]], rates: Floats, gradients: int, seed: int, round: int = 0) -> Events:
    """One block of independent Poisson clocks: worker k finishes gradients at rate speeds[k], and edge e meets at rate rates[e].

    The block begins at time 0 and ends with its `gradients`-th gradient (meetings after it belong to the next block). Poisson clocks
    have no memory, so the independently drawn blocks of successive rounds, put end to end, are one long run of the clocks.
    The order and the times of the gradients are the same for every topology and rate of meetings.

    Args:
        speeds: float64 [K], gradients per second of each worker, positive.
        edges: E pairs of workers; a meeting of (i, j) has worker i and peer j.
        rates: float64 [E], meetings per second of each edge.
        gradients: number of gradients in the block, over all workers.
        seed: seed of the run.
        round: number of the block.

    Raises:
        UserError: a speed that is not positive.
    """
    _require_positive("speeds", speeds)
    draws = generator(seed, "events", round)
    total = speeds.sum()
    times = np.cumsum(draws.exponential(1 / total, gradients))
    worker = draws.choice(len(speeds), gradients, p=speeds / total)
    # Given its end, a block has a Poisson number of meetings, at independent uniform times.
    end = times[-1] if gradients else 0.0
    met = draws.choice(len(rates), draws.poisson(rates.sum() * end), p=rates / rates.sum()) if rates.any() else np.zeros(0, np.int64)
    pairs = np.array(edges, np.int64).reshape(-1, 2)[met]
    # Meetings first, so that a stable sort leaves the last gradient last even if rounding gives a meeting the same time.
    times = np.concatenate([draws.uniform(0, end, len(met)), times])
    order = np.argsort(times, kind="stable")
    none = np.full(gradients, -1, np.int64)
    return Events(times[order], np.concatenate([pairs[:, 0], worker])[order], np.concatenate([pairs[:, 1], none])[order])


def periodic_events(cycles: Floats, done: Indices, gradients: int) -> Events:
    """The next gradients of workers that never wait: worker k finishes its n-th, n = 1, 2, ..., at time n * cycles[k].

    Equal times are ordered by worker number. Rounding must not decide which times are equal (3 * 0.1 > 0.3 in floating point), so the
    cycles are first rounded to whole ticks, 5e9 to the fastest cycle, and the rest is integer arithmetic. Ties are then exact where all
    cycles are p / q times the fastest, q up to 24 (as with speeds that are whole numbers up to 24), and the events do not depend on how
    they are split into blocks. The price is a relative error of 1e-10 in the times.

    Args:
        cycles: float64 [K], seconds for one gradient of each worker.
        done: int64 [K], gradients that each has already finished; for the next block, add `np.bincount(events.worker, minlength=K)`.
        gradients: number of events wanted.

    Returns:
        `gradients` events without meetings; times are counted from the beginning of training, not of the block.

    Raises:
        UserError: a cycle that is not positive, or more than a million times as long as another.
    """
    _require_positive("cycles", cycles)
    fastest = cycles.min()
    slowest = cycles.max() / fastest
    # Cycles are quotients of numbers that were checked before the run began: one more rounding error must not end it.
    allowed = bool(slowest <= SLOWEST * (1 + 1e-9))
    require(allowed, f"cycles: a worker {slowest:.3g} times as slow as the fastest; choose at most {SLOWEST:,} times")
    ticks = np.rint(cycles / fastest * _TICKS).astype(np.int64)
    # By this time the workers together have finished at least done.sum() + gradients: each loses less than one to rounding down.
    horizon = (gradients + done.sum() + len(cycles)) / (1 / ticks).sum()
    candidates = np.maximum(0, (horizon // ticks).astype(np.int64) - done)
    worker = np.repeat(np.arange(len(cycles)), candidates)
    number = np.arange(len(worker)) + np.repeat(done + 1 - (np.cumsum(candidates) - candidates), candidates)
    finished = number * ticks[worker]
    order = np.lexsort((worker, finished))[:gradients]
    return Events(finished[order] / _TICKS * fastest, worker[order], np.full(gradients, -1, np.int64))


@dataclass(frozen=True)
class Step:
    """Events that can run together.

    kind: "gradients" computes gradients (and, where workers meet, takes the step), "meetings" lets disjoint pairs meet, "apply" hands
    gradients to the server one after the other. positions: int64, indices of the events, ascending.
    """

    kind: Literal["gradients", "meetings", "apply"]
    positions: Indices


def meeting_schedule(events: Events) -> list[Step]:
    """Steps for workers that compute and meet, with the same result as the events one by one.

    An event waits for the earlier events of its workers, and for nothing else. A step is of "gradients" or of "meetings", and no
    worker is in it twice. Gradients are what costs, so there are as few steps of them as possible: the largest number of gradients on
    any chain of events that wait for each other. Each is followed by the meetings that it makes possible, in as many steps as it takes
    to keep pairs disjoint.
    """
    # The level of a worker is (gradients, meetings since the last of them) on the longest chain behind it, as one number in which
    # a gradient weighs more than any number of meetings; a larger level is a later step.
    gradient = len(events) + 1
    reached = [0] * (int(max(events.worker.max(), events.peer.max())) + 1 if len(events) else 0)
    levels = np.zeros(len(events), np.int64)
    for position, (worker, peer) in enumerate(zip(events.worker.tolist(), events.peer.tolist(), strict=True)):
        if peer < 0:
            reached[worker] += gradient - reached[worker] % gradient
        else:
            reached[worker] = reached[peer] = max(reached[worker], reached[peer]) + 1
        levels[position] = reached[worker]
    return [Step("meetings" if level % gradient else "gradients", positions) for level, positions in _groups(levels)]


def server_schedule(events: Events) -> list[Step]:
    """Steps for an asynchronous parameter server, with the same result as the gradient events one by one.

    At an event the server applies the gradient at the worker's copy of the model, and the worker copies the new model. So the steps come
    in pairs with the same positions: "gradients" computes those of distinct workers, all at copies made before the pair, and "apply"
    hands them to the server in order of time; after each, its worker copies the model. A pair ends before a worker's second event, whose
    gradient needs a copy made in this pair. No schedule has fewer steps of gradients, and no gradient is kept from pair to pair.

    Raises:
        ValueError: if there are meetings.
    """
    if (events.peer >= 0).any():
        raise ValueError("a server applies gradients only, and there are meetings among the events")
    pairs = np.zeros(len(events), np.int64)
    pair = 0
    seen: set[int] = set()
    for position, worker in enumerate(events.worker.tolist()):
        if worker in seen:
            pair += 1
            seen.clear()
        seen.add(worker)
        pairs[position] = pair
    return [step for _, positions in _groups(pairs) for step in (Step("gradients", positions), Step("apply", positions))]


def _groups(keys: Indices) -> list[tuple[int, Indices]]:
    """The distinct keys in ascending order, each with its positions, ascending."""
    order = np.argsort(keys, kind="stable")
    distinct, starts = np.unique(keys[order], return_index=True)
    return list(zip(distinct.tolist(), np.split(order, starts[1:]), strict=True)) if len(keys) else []


def _require_positive(name: str, values: Floats) -> None:
    wrong = np.flatnonzero(~((values > 0) & np.isfinite(values)))
    require(not len(wrong), f"{name}: worker {wrong[:1].tolist()} has {values[wrong[:1]].tolist()}; choose positive numbers")
