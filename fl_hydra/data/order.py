"""Which images a client draws: an endless walk over its shard, reshuffled at each pass."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from fl_hydra.data.dataset import Indices
from fl_hydra.randomness import generator
from fl_hydra.sharding.base import Shards


class Order:
    """A client's draws as a function of its cursor (the samples it has drawn so far).

    Pass p visits the shard in a permutation f(seed, client, p). Batches run across the border of two passes, so nothing is
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
        if size == 1:
            return np.full(count, self._shards[client][0])
        first, last = cursor // size, (cursor + count - 1) // size
        walks = [self._permutation(client, walk) for walk in range(first, last + 1)]
        drawn = walks[0] if len(walks) == 1 else np.concatenate(walks)
        return drawn[cursor - first * size :][:count]
