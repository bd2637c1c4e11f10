"""Which clients hold which classes, exactly N_c each: whether that is possible, and how, by counting alone.

In the graph with an edge from each client to each class that it holds, a connected component of k clients and g classes has k N_c edges
and needs at least k + g - 1, and a class of n images has edges to at most min(n, k) clients. So a division falls into groups of classes
with

1. images for exactly k clients of s or s + 1 images each, where s, all images // K, is at least N_c,
2. g <= k (N_c - 1) + 1,
3. sum of min(n, k) over its classes >= k N_c.

Within such groups, clients are served one by one (:func:`holders`). Most often all classes are one group. If they are too many for the
second condition, they must be partitioned so that the sums come out right, which is as hard as bin packing: a search with a limit on its
steps, not its time, so that it ends alike on every machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fl_hydra.arrays import Indices
from fl_hydra.sharding.base import equal_sizes

STEPS = 100_000


class UndecidedError(Exception):
    """The search for groups ran out of steps."""


@dataclass(frozen=True)
class Group:
    """Classes, int64 [g], and the number of clients that hold these and no other classes."""

    classes: Indices
    clients: int


def groups(counts: Indices, K: int, N_c: int, steps: int = STEPS) -> list[Group] | None:
    """Groups that meet the conditions; None if there are none, and so no division.

    Args:
        counts: int64 [classes], images of each.
        K: clients, among whom all images are divided equally (±1).
        N_c: classes of each client.
        steps: limit on the steps of the search.

    Raises:
        UndecidedError: the search ran out of steps.
    """
    present = np.flatnonzero(counts)
    n = counts[present]
    g, size = len(n), int(n.sum()) // K
    if size < N_c or g > K * N_c or np.minimum(n, K).sum() < K * N_c:
        return None
    if g <= K * (N_c - 1) + 1:
        return [Group(present, K)]
    if N_c == 1:  # each class by itself, as its clients hold no other
        least, most = -(-n // (size + 1)), n // size
        if (least > most).any() or not least.sum() <= K <= most.sum():
            return None
        clients = least + np.diff(np.minimum((most - least).cumsum(), K - least.sum()), prepend=0)
        return [Group(present[[place]], int(k)) for place, k in enumerate(clients)]
    values, copies = (array[::-1] for array in np.unique(n, return_counts=True))
    parts = _Parting(values.tolist(), size, N_c, steps).search(tuple(copies.tolist()), K)
    if parts is None:
        return None
    alike = [iter(present[n == value]) for value in values]
    return [Group(np.array([next(a) for a, n in zip(alike, taken, strict=True) for _ in range(n)]), k) for taken, k in parts]


def holders(counts: Indices, parts: list[Group], N_c: int) -> NDArray[np.bool_] | None:
    """Which client holds which class, bool [K, classes], for classes in these groups; None if no choice is found."""
    rows = []
    for part in parts:
        held = _hold(counts[part.classes], part.clients, N_c)
        if held is None:
            return None
        rows.append(np.zeros((part.clients, len(counts)), np.bool_))
        rows[-1][:, part.classes] = held
    return np.concatenate(rows)


Copies = tuple[int, ...]
"""Number of classes of each size, from the largest."""


class _Parting:
    """Partitions classes into groups: first that of the largest class, then the rest, backtracking if the rest cannot be partitioned.

    Classes of equally many images are interchangeable, so a group is described by its number of classes of each size.
    """

    def __init__(self, values: list[int], size: int, N_c: int, steps: int) -> None:
        self.values, self.size, self.N_c, self.steps = values, size, N_c, steps
        self.hopeless: set[tuple[Copies, int]] = set()

    def search(self, left: Copies, K: int) -> list[tuple[Copies, int]] | None:
        """Groups of these classes for K clients; None if there are none."""
        if not any(left):
            return [] if K == 0 else None
        if not self.N_c <= sum(left) <= K * self.N_c or (left, K) in self.hopeless:
            return None
        largest = next(place for place, copies in enumerate(left) if copies)
        for taken, k in self.first_groups(left, K, largest, (0,) * largest, 0, 0):
            rest = self.search(tuple(a - b for a, b in zip(left, taken, strict=True)), K - k)
            if rest is not None:
                return [(taken, k), *rest]
        self.hopeless.add((left, K))
        return None

    def first_groups(self, left: Copies, K: int, largest: int, taken: Copies, number: int, images: int) -> Iterator[tuple[Copies, int]]:
        """Groups that hold the largest class and extend `taken`, the classes of the sizes so far, each with a number of clients."""
        self.steps -= 1
        if self.steps < 0:
            raise UndecidedError
        if images > (self.size + 1) * K or number > K * (self.N_c - 1) + 1:
            return
        place = len(taken)
        if place < len(left):
            for copies in range(place == largest, left[place] + 1):
                further = images + copies * self.values[place]
                yield from self.first_groups(left, K, largest, (*taken, copies), number + copies, further)
            return
        least = max(-(-images // (self.size + 1)), -(-(number - 1) // (self.N_c - 1)))
        for k in range(least, min(images // self.size, K) + 1):
            if sum(copies * min(value, k) for copies, value in zip(taken, self.values, strict=True)) >= k * self.N_c:
                yield taken, k


def _hold(counts: Indices, K: int, N_c: int) -> NDArray[np.bool_] | None:
    """Which of K clients holds which class of one group, bool [K, classes].

    Each client takes its N_c classes so that what is left is a group for the other clients. Such a choice existed in every case tried
    (tests compare with an integer programme); None if not.

    Args:
        counts: int64 [classes], all above 0, which meet the conditions above.
    """
    left, holds = counts.copy(), np.zeros((K, len(counts)), np.bool_)
    for client, size in enumerate(equal_sizes(int(counts.sum()), K)):
        taken = _portion(left, K - client, int(size), N_c)
        if taken is None:
            return None
        holds[client] = taken > 0
        left -= taken
    return holds


def _portion(counts: Indices, K: int, size: int, N_c: int) -> Indices | None:
    """Images of each class for one of K clients, int64 [classes], such that what is left is a group for K - 1; None if none is found.

    The client takes some classes whole, neighbours in the order of sizes: at least as many as the second condition demands. From its
    others, the largest ones, it first takes what they can give without loss to the third condition.
    """
    order = np.argsort(counts, kind="stable")
    order = order[counts[order] > 0]
    n = counts[order]
    g = len(n)
    must_go = max(0, g - ((K - 1) * (N_c - 1) + 1)) if K > 1 else g
    for whole in range(must_go, min(N_c, g) + 1):
        parted = N_c - whole
        one, largest = np.ones(parted, np.int64), n[g - parted :]
        free, most = np.maximum(largest - K + 1, one), np.maximum(largest - 1, one)
        for start in range(g - parted - whole + 1):
            need = size - int(n[start : start + whole].sum())
            if need < parted:
                break
            if need > most.sum():
                continue
            portion = np.zeros(g, np.int64)
            portion[start : start + whole] = n[start : start + whole]
            portion[g - parted :] = _spread(need, [one, free, most])
            after = n - portion
            if np.minimum(after, K - 1).sum() >= (K - 1) * N_c and (after > 0).sum() <= (K - 1) * (N_c - 1) + 1:
                taken = np.zeros_like(counts)
                taken[order] = portion
                return taken
    return None


def _spread(total: int, limits: list[Indices]) -> Indices:
    """Whole numbers, int64 [n], whose sum is `total`: raised evenly to the first limits, then to the next, and so on."""
    numbers = np.zeros_like(limits[0])
    for limit in limits:
        while (rest := total - int(numbers.sum())) and len(below := np.flatnonzero(numbers < limit)):
            more = np.minimum(limit[below] - numbers[below], max(1, rest // len(below)))
            numbers[below] += np.diff(np.minimum(more.cumsum(), rest), prepend=0)
    return numbers
