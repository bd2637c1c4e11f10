"""Label skew: exactly N_c classes for each client (the "pathological" split of McMahan et al. 2017, made exact)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fl_hydra.arrays import Indices
from fl_hydra.data.population import Census, Population
from fl_hydra.errors import UserError, require
from fl_hydra.randomness import generator
from fl_hydra.sharding.base import Sharding, Shards, class_counts, deal, equal_sizes, shardings

ATTEMPTS = 12
EXACT = 1000
SLACKS = (0.0, 0.1, 0.3, 1.0, float("inf"))


@shardings.register
@dataclass
class Classes(Sharding):
    """Every client holds exactly N_c classes; shards are disjoint, cover all images and differ in size by at most one.

    Which classes a client holds is drawn with the seed. How many images it takes of each is an integer flow from classes
    to clients, kept as even as the counts allow.
    """

    name: str = "classes"
    uses: ClassVar[frozenset[str]] = frozenset({"N_c"})

    def check(self, census: Census, K: int, N_c: int | None, seed: int) -> None:
        super().check(census, K, N_c, seed)
        counts = class_counts(census, self.name)
        classes = int((counts > 0).sum())
        require(N_c is not None, f"sharding=classes needs the number of classes for each client: add N_c=1 to N_c={classes}")
        assert N_c is not None
        require(1 <= N_c <= classes, f"N_c={N_c}: the dataset has {classes} classes; choose N_c from 1 to {classes}")
        if _division(tuple(counts.tolist()), K, N_c, seed) is None:
            raise UserError(
                f"K={K} N_c={N_c}: found no division that gives every client exactly {N_c} classes, equal sizes and every image to "
                "someone; " + _what_works(counts, K, N_c, seed)
            )

    def shards(self, population: Population, K: int, N_c: int | None, seed: int) -> Shards:
        labels = population.labels
        assert N_c is not None and labels is not None
        counts = np.bincount(labels)
        self.check(Census.of_classes(counts), K, N_c, seed)
        taken = _division(tuple(counts.tolist()), K, N_c, seed)
        assert taken is not None
        return deal(labels, taken, seed)


@lru_cache(maxsize=4)
def _division(counts: tuple[int, ...], K: int, N_c: int, seed: int) -> NDArray[np.int64] | None:
    """:func:`_divide`, once for the check and the shards: an integer programme may take its time, and has a limit of it."""
    return _divide(np.array(counts, np.int64), K, N_c, seed)


def _divide(counts: Indices, K: int, N_c: int, seed: int, exhaustive: bool = True) -> NDArray[np.int64] | None:
    """Images of each class for each client, int64 [K, classes], or None if there is no division.

    Random draws of classes are tried first. Where none admits a flow, small requests are decided exactly by an integer
    programme; large ones are refused.
    """
    present = np.flatnonzero(counts)
    total = int(counts.sum())
    if K * N_c < len(present) or K * N_c > total:
        return None  # some class would have no client, or some client too few images for its classes
    for holds in _draws(counts, K, N_c, seed):
        for slack in SLACKS:
            taken = _flow(counts, holds, N_c, slack)
            if taken is not None:
                return taken
    return _integer_programme(counts, K, N_c) if exhaustive and K * len(present) <= EXACT else None


def _integer_programme(counts: Indices, K: int, N_c: int) -> NDArray[np.int64] | None:
    """Choose classes and shares at once: binary `holds` and integer `taken`, both [K, classes]; None if impossible."""
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import block_array, eye_array, kron

    L, sizes = len(counts), equal_sizes(int(counts.sum()), K)
    per_client, per_class = kron(eye_array(K), np.ones((1, L))), kron(np.ones((1, K)), eye_array(L))
    at_most, one = kron(eye_array(K), np.diag(counts)), eye_array(K * L)
    rows = block_array([[per_client, None], [None, per_client], [per_class, None], [one, -at_most], [one, -one]])
    zero, free = np.zeros(K * L), np.full(K * L, np.inf)
    low = np.concatenate([sizes, np.full(K, N_c), counts, -free, zero])
    high = np.concatenate([sizes, np.full(K, N_c), counts, zero, free])
    bounds = Bounds(0, np.concatenate([np.tile(counts, K), np.tile(counts > 0, K)]))
    found = milp(
        np.zeros(2 * K * L), integrality=1, bounds=bounds, constraints=LinearConstraint(rows, low, high), options={"time_limit": 20}
    )
    if found.x is None:
        return None
    taken: NDArray[np.int64] = np.rint(found.x[: K * L]).astype(np.int64).reshape(K, L)
    return taken


def _draws(counts: Indices, K: int, N_c: int, seed: int) -> Iterator[NDArray[np.bool_]]:
    """Which client holds which class, bool [K, classes]: random draws, then a chain of neighbouring classes.

    The number of clients of each class is proportional to its images. Random draws can fall apart into groups whose images
    and clients do not match; the chain is connected, which is what a flow needs most.
    """
    degrees = _degrees(counts, K, N_c)
    if degrees is None:
        return
    for attempt in range(ATTEMPTS):
        rng = generator(seed, "shards-draw", attempt)
        left = degrees.copy()
        holds = np.zeros((K, len(counts)), bool)
        for client in range(K):
            # The classes with the most places left first, ties at random: a greedy choice that always comes out even.
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
    # Each class to clients that follow one another, wrapping round: classes overlap in neighbours, N_c for each client.
    holds = np.zeros((K, len(counts)), bool)
    holds[np.arange(K * N_c) % K, chain] = True
    if (holds.sum(1) == N_c).all():
        yield holds


def _degrees(counts: Indices, K: int, N_c: int) -> Indices | None:
    """Clients of each class: proportional to its images, at least 1 where it has any, at most K; sums to K * N_c."""
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


def _flow(counts: Indices, holds: NDArray[np.bool_], N_c: int, slack: float) -> NDArray[np.int64] | None:
    """Images of each class for each client: an integer flow in which no share strays from size / N_c by more than `slack`."""
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


def _what_works(counts: Indices, K: int, N_c: int, seed: int) -> str:
    """The nearest K for this N_c and the nearest N_c for this K that can be divided."""
    classes, total = int((counts > 0).sum()), int(counts.sum())
    near_K = _nearest(K, 1, min(total, 2 * K + classes), lambda k: _divide(counts, k, N_c, seed, False) is not None)
    near_N_c = _nearest(N_c, 1, classes, lambda n: _divide(counts, K, n, seed, False) is not None)
    options = [f"K={near_K} with this N_c"] if near_K else []
    options += [f"N_c={near_N_c} with this K"] if near_N_c else []
    return "the nearest that work: " + " or ".join(options) if options else "choose more images, a smaller K or sharding=iid"


def _nearest(value: int, low: int, high: int, works: Callable[[int], bool]) -> int | None:
    for distance in range(1, high - low + 1):
        for candidate in (value - distance, value + distance):
            if low <= candidate <= high and works(candidate):
                return candidate
    return None
