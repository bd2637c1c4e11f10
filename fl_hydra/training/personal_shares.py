"""The samples on which clients are judged.

dealt: each class's validation and test samples are dealt to clients in proportion to their training samples of it, by largest remainders;
samples without a label, in proportion to shard sizes. So every dealt sample is used once, for any K. Where clients are the users of a text,
each is judged on its own samples of both sets instead.

shards: on what was withheld of each client's shard (:func:`fl_hydra.sharding.withheld.withhold`).
"""

from __future__ import annotations

import math
from itertools import pairwise
from weakref import WeakKeyDictionary

import numpy as np
from torch import Tensor

from fl_hydra.arrays import Indices
from fl_hydra.devices import to_device
from fl_hydra.randomness import generator
from fl_hydra.sharding.base import Shards
from fl_hydra.training.packed_run import PackedRun
from fl_hydra.training.samples import Samples
from fl_hydra.training.split import Split


def deal_shares(counts: Indices, labels: Indices, seed: int) -> list[Indices]:
    """Deal labelled samples to clients, each class by largest remainders. Of clients with equal ones those come first that have least of
    what they would have in proportion, and then it is drawn.

    Args:
        counts: int64 [K, classes], training samples of each client and class. labels: int64 [n], of the samples that are dealt.
        seed: determines which sample goes to whom.

    Returns:
        for each client, positions in `labels`, ascending. Samples of a class that no client has are not dealt.
    """
    dealt: list[list[Indices]] = [[] for _ in counts]
    surplus = np.zeros(len(counts))  # what each has beyond its part of the classes so far, which decides where remainders are equal
    for label in range(counts.shape[1]):
        members, total = np.flatnonzero(labels == label), int(counts[:, label].sum())
        if not total or not len(members):
            continue
        wanted = counts[:, label] * len(members)
        own = wanted // total
        lots = generator(seed, "personal-ties", label).permutation(len(counts))
        largest = np.lexsort((lots, surplus.round(9), -(wanted % total)))[: len(members) - int(own.sum())]
        own[largest] += 1
        surplus += own - wanted / total
        order = generator(seed, "personal-shares", label).permutation(members)
        for client, piece in enumerate(np.split(order, np.cumsum(own)[:-1])):
            dealt[client].append(piece)
    return [np.sort(np.concatenate(pieces)) if pieces else np.zeros(0, np.int64) for pieces in dealt]


def own_shares(owners: Indices, K: int) -> list[Indices]:
    """For each of K clients, positions in `owners`, int64 [n], of the samples that are its own, ascending."""
    order = np.argsort(owners, kind="stable")
    edges = np.searchsorted(owners[order], np.arange(K + 1))
    return [order[first:last] for first, last in pairwise(edges)]


def part_of(shards: Shards, part: float, seed: int) -> list[Indices]:
    """For each client, this part of its samples, rounded up, ascending: the first ones of an order that never changes."""
    if part >= 1:
        return [shards[client] for client in range(len(shards.sizes))]
    return [
        np.sort(generator(seed, "evaluation", client).permutation(shards[client])[: math.ceil(part * size)])
        for client, size in enumerate(shards.sizes.tolist())
    ]


class PersonalShares:
    """The shares of the runs of a trainer. split: its samples."""

    def __init__(self, split: Split) -> None:
        self._split = split
        self._known: WeakKeyDictionary[PackedRun, dict[tuple[str, float, int], list[Indices]]] = WeakKeyDictionary()

    def of(self, run: PackedRun, name: str, looked_at: Tensor) -> tuple[Samples, list[Tensor | None]]:
        """For each of a run's clients the samples that it is judged on, as positions int64 [n] in the samples given with them; None: it has
        none.

        Args:
            name: of the set, `val` or `test`. looked_at: int64 [n], those of its samples that are evaluated now.
        """
        withheld, known = run.withheld[name], self._known.setdefault(run, {})
        if withheld is not None:
            samples, part = self._split.train, run.experiment.final
            if not run.finished:
                part = min(1.0, samples.eval_subset_size / max(1, int(withheld.sizes.sum())))
            key = (name, part, 0)
            if key not in known:
                known[key] = part_of(withheld, part, run.experiment.seed)
            return samples, [to_device(share, samples.device) if len(share) else None for share in known[key]]
        samples = self._split.validation if name == "val" else self._split.test
        key = (name, len(looked_at), int(looked_at.sum()))  # the first samples, or a representative subset
        if key not in known:
            known[key] = self._dealt(run, name, samples, looked_at)
        return samples, [looked_at[to_device(share, looked_at.device)] if len(share) else None for share in known[key]]

    def _dealt(self, run: PackedRun, name: str, samples: Samples, looked_at: Tensor) -> list[Indices]:
        e, owners = run.experiment, self._split.owners.get(name)
        if owners is not None and e.sharding.name == "natural" and e.K > 1:
            return own_shares(owners[looked_at.cpu().numpy()], e.K)
        counts = run.facts.label_counts
        if counts is None:
            return deal_shares(run.shard_sizes[:, None], np.zeros(len(looked_at), np.int64), e.seed)
        return deal_shares(counts, samples.targets[looked_at].cpu().numpy(), e.seed)
