"""Which images a client draws: an endless walk over its shard, reshuffled at each pass."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from fl_hydra.arrays import Indices
from fl_hydra.randomness import generator, key
from fl_hydra.sharding.base import Shards

SHORT = 64
"""A shard with fewer images is passed through many times in a round, so its passes are drawn together."""


class ShardSampler:
    """A client's draws as a function of its cursor (the samples it has drawn so far).

    Pass p visits the shard in a permutation f(seed, client, p). Batches run across the border between passes, so nothing is
    dropped, and a client with fewer images than a batch sees some of them twice in it.
    """

    def __init__(self, shards: Shards, seed: int) -> None:
        self._shards = shards
        self._seed = seed
        # Short shards are cheap to shuffle again; a long one (centralized training) is kept between rounds.
        self._permutation = lru_cache(maxsize=16)(self._shuffle)

    def _shuffle(self, client: int, walk: int) -> Indices:
        return generator(self._seed, "order", client, walk).permutation(self._shards[client])

    def indices(self, client: int, cursor: int, count: int) -> Indices:
        """Positions in the training images of the next `count` draws; int64 [count]."""
        size = len(self._shards[client])
        first, last = cursor // size, (cursor + count - 1) // size
        if size < SHORT:
            return self._short_walks(client, first, last)[cursor - first * size :][:count]
        walks = [self._permutation(client, walk) for walk in range(first, last + 1)]
        drawn = walks[0] if len(walks) == 1 else np.concatenate(walks)
        return drawn[cursor - first * size :][:count]

    def _short_walks(self, client: int, first: int, last: int) -> Indices:
        """Passes first..last over a short shard, drawn all at once.

        Each pass sorts the shard by its own stretch of one counter-based stream, so it does not depend on which passes are asked for.
        """
        shard = self._shards[client]
        size = len(shard)
        # Philox gives four numbers for each step of its counter.
        begin, end = first * size, (last + 1) * size
        stream = np.random.Philox(key=key(self._seed, "order", client), counter=begin // 4)
        keys = stream.random_raw(end - begin + begin % 4)[begin % 4 :].reshape(-1, size)
        walks: Indices = shard[keys.argsort(axis=1, kind="stable")].ravel()
        return walks
