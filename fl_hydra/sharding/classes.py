"""Label skew: exactly N_c classes for each client (the "pathological" split of McMahan et al. 2017, made exact)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fl_hydra.arrays import Indices
from fl_hydra.data.sample_owners import SampleCounts, SampleOwners
from fl_hydra.errors import UserError, require
from fl_hydra.randomness import generator
from fl_hydra.sharding.base import Sharding, Shards, class_counts, deal, equal_sizes, shardings
from fl_hydra.sharding.divisions import UndecidedError, groups, holders

ATTEMPTS = 12
FEW_STEPS = 2000
SLACKS = (0.0, 0.1, 0.3, 1.0, float("inf"))


@shardings.register
@dataclass
class Classes(Sharding):
    """Every client holds exactly N_c classes; shards are disjoint, cover all images and differ in size by at most one.

    Which classes a client holds is drawn with the seed. How many images it takes of each is found by an integer flow from
    classes to clients, kept as even as the counts allow.
    """

    name: str = "classes"
    uses: ClassVar[frozenset[str]] = frozenset({"N_c"})

    def check(self, sample_counts: SampleCounts, K: int, N_c: int | None, seed: int) -> None:
        super().check(sample_counts, K, N_c, seed)
        counts = class_counts(sample_counts, self.name)
        classes = int((counts > 0).sum())
        require(N_c is not None, f"sharding=classes needs the number of classes for each client: add N_c=1 to N_c={classes}")
        assert N_c is not None
        require(1 <= N_c <= classes, f"N_c={N_c}: the dataset has {classes} classes; choose N_c from 1 to {classes}")
        try:
            found = "there is no division" if _division(tuple(counts.tolist()), K, N_c, seed) is None else ""
        except UndecidedError:
            found = "found no division"
        if found:
            raise UserError(
                f"K={K} N_c={N_c}: {found} with exactly {N_c} class{'es' if N_c > 1 else ''} per client, equal sizes and every image used; "
                + _what_works(counts, K, N_c)
            )

    def shards(self, sample_owners: SampleOwners, K: int, N_c: int | None, seed: int) -> Shards:
        labels = sample_owners.labels
        assert N_c is not None and labels is not None
        counts = np.bincount(labels)
        self.check(SampleCounts.of_classes(counts), K, N_c, seed)
        division = _division(tuple(counts.tolist()), K, N_c, seed)
        assert division is not None
        return deal(labels, division.taken, seed)

    def revised(self, sample_counts: SampleCounts, K: int, N_c: int | None, seed: int) -> bool:
        # The first release used an integer programme where no draw worked.
        assert N_c is not None
        return not _drawn(tuple(class_counts(sample_counts, self.name).tolist()), K, N_c, seed)


@dataclass(frozen=True)
class _Division:
    """Images of each class for each client, int64 [K, classes], and whether classes were drawn or, where no draw worked, constructed."""

    taken: Indices
    drawn: bool


@lru_cache(maxsize=4)
def _division(counts: tuple[int, ...], K: int, N_c: int, seed: int) -> _Division | None:
    """:func:`_divide`, cached for the check, the name and the shards."""
    return _divide(np.array(counts, np.int64), K, N_c, seed)


@lru_cache(maxsize=1024)
def _drawn(counts: tuple[int, ...], K: int, N_c: int, seed: int) -> bool:
    division = _division(counts, K, N_c, seed)
    return division is not None and division.drawn


def _divide(counts: Indices, K: int, N_c: int, seed: int) -> _Division | None:
    """The division of these images; None if there is none.

    Random draws of classes are tried first. If none admits a flow, sets of classes are constructed by counting (`divisions.py`),
    and the seed only draws which client has which set.

    Raises:
        UndecidedError: no draw worked, and it is not known whether there is a division at all.
    """
    try:
        parts = groups(counts, K, N_c)
        if parts is None:
            return None
    except UndecidedError:
        parts = []
    for holds in _draws(counts, K, N_c, seed):
        if (taken := _even_flow(counts, holds, N_c)) is not None:
            return _Division(taken, True)
    if parts and (held := holders(counts, parts, N_c)) is not None:
        taken = _even_flow(counts, held[generator(seed, "shards-held").permutation(K)], N_c)
        if taken is not None:
            return _Division(taken, False)
    raise UndecidedError


def _even_flow(counts: Indices, holds: NDArray[np.bool_], N_c: int) -> Indices | None:
    """Images of each class for each client, as even as `holds` allows; None if it allows no division."""
    return next((taken for slack in SLACKS if (taken := integer_flow(counts, holds, N_c, slack)) is not None), None)


def _draws(counts: Indices, K: int, N_c: int, seed: int) -> Iterator[NDArray[np.bool_]]:
    """Which client holds which class, bool [K, classes]: random draws, then chains of neighbouring classes.

    The number of clients of each class is proportional to its images. Random draws can fall apart into groups whose images
    and clients do not match; a chain is connected, which is what a flow needs most.
    """
    degrees = _degrees(counts, K, N_c)
    if degrees is None:
        return
    for attempt in range(ATTEMPTS):
        rng = generator(seed, "shards-draw", attempt)
        left = degrees.copy()
        holds = np.zeros((K, len(counts)), bool)
        for client in range(K):
            # The classes with the most places left first, ties at random: a greedy choice that always fills all places.
            choice = np.lexsort((rng.random(len(left)), -left))[:N_c]
            if left[choice].min() <= 0:
                break
            holds[client, choice] = True
            left[choice] -= 1
        if not left.any():
            yield holds[rng.permutation(K)]
    rng = generator(seed, "shards-chain")
    order = rng.permutation(np.flatnonzero(counts))
    chain = np.repeat(order, degrees[order])
    holds = np.zeros((K, len(counts)), bool)
    holds[np.repeat(np.arange(K), N_c), chain] = True
    if (holds.sum(1) == N_c).all():
        yield holds
    # Each class goes to consecutive clients, wrapping around: neighbouring classes overlap, and every client gets N_c.
    holds = np.zeros((K, len(counts)), bool)
    holds[np.arange(K * N_c) % K, chain] = True
    if (holds.sum(1) == N_c).all():
        yield holds


def _degrees(counts: Indices, K: int, N_c: int) -> Indices | None:
    """Number of clients of each class: proportional to its images, at least 1 if it has any, at most K; sums to K * N_c."""
    share = counts / counts.sum() * K * N_c
    degrees = np.clip(np.floor(share).astype(np.int64), (counts > 0).astype(np.int64), np.minimum(K, counts))
    for _ in range(K * N_c):
        missing = K * N_c - int(degrees.sum())
        if missing == 0:
            return np.asarray(degrees, np.int64)
        room = (degrees < np.minimum(K, counts)) if missing > 0 else (degrees > 1)
        if not room.any():
            return None
        gain = np.where(room, (share - degrees) * np.sign(missing), -np.inf)
        degrees[int(gain.argmax())] += np.sign(missing)
    return None


def integer_flow(counts: Indices, holds: NDArray[np.bool_], N_c: int, slack: float) -> NDArray[np.int64] | None:
    """Images of each class for each client: an integer flow with each share within a fraction `slack` of size / N_c; None if none."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_flow

    K, classes = holds.shape
    sizes = equal_sizes(int(counts.sum()), K)
    small, extra = int(sizes.min()), int((sizes - sizes.min()).sum())
    least = max(1, int(small / N_c * max(0.0, 1 - slack)))
    most = int(min(np.ceil((small + 1) / N_c * (1 + slack)), counts.max()))
    clients, labels = np.nonzero(holds)
    supply = counts - least * holds.sum(0)
    demand = small - least * N_c
    if supply.min() < 0 or demand < 0 or most < least:
        return None
    # Nodes: source, classes, clients, the pool of clients with one image more, sink.
    source, pool, sink = 0, 1 + classes + K, 2 + classes + K
    edges = np.concatenate(
        [
            np.stack([np.full(classes, source), 1 + np.arange(classes), supply]),
            np.stack([1 + labels, 1 + classes + clients, np.full(len(labels), most - least)]),
            np.stack([1 + classes + np.arange(K), np.full(K, sink), np.full(K, demand)]),
            np.stack([1 + classes + np.arange(K), np.full(K, pool), np.ones(K, np.int64)]),
            np.array([[pool], [sink], [extra]]),
        ],
        axis=1,
    ).astype(np.int32)
    graph = csr_array((edges[2], (edges[0], edges[1])), shape=(sink + 1, sink + 1))
    result = maximum_flow(graph, source, sink)
    if result.flow_value != int(supply.sum()):
        return None
    taken = np.zeros((K, classes), np.int64)
    taken[clients, labels] = least + np.asarray(result.flow[1 + labels, 1 + classes + clients]).ravel()
    return taken


def _what_works(counts: Indices, K: int, N_c: int) -> str:
    """The nearest K for this N_c and the nearest N_c for this K that can be divided."""

    def works(K: int, N_c: int) -> bool:
        try:
            return groups(counts, K, N_c, FEW_STEPS) is not None
        except UndecidedError:
            return False

    classes, total = int((counts > 0).sum()), int(counts.sum())
    near_K = _nearest(K, 1, min(total, 2 * K + classes), lambda k: works(k, N_c))
    near_N_c = _nearest(N_c, 1, classes, lambda n: works(K, n))
    options = [f"K={near_K} with this N_c"] if near_K else []
    options += [f"N_c={near_N_c} with this K"] if near_N_c else []
    return "the nearest that work: " + " or ".join(options) if options else "choose more images, a smaller K or sharding=iid"


def _nearest(value: int, low: int, high: int, works: Callable[[int], bool]) -> int | None:
    for distance in range(1, high - low + 1):
        for candidate in (value - distance, value + distance):
            if low <= candidate <= high and works(candidate):
                return candidate
    return None
