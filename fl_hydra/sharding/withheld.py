"""Parts of clients' shards that are withheld from training, for validation and for test."""

from __future__ import annotations

import math

import numpy as np

from fl_hydra.arrays import Indices
from fl_hydra.randomness import generator
from fl_hydra.sharding.base import Shards


def withhold(shards: Shards, labels: Indices | None, part: float, seed: int) -> tuple[Shards, Shards, Shards]:
    """Divide each client's samples into those for training, validation and test, as a function of the seed and the client.

    Of n samples, `part` n are withheld, rounded, and at most n - 1; half of them, rounded up, for test. Labelled samples, ordered by
    class, are counted off in equal strides from a place that is drawn, and fall to test and validation in turn, so that each class has its
    share in both, as far as whole numbers go. Texts have no labels, and their windows overlap: the last ones are withheld, first for
    validation, then for test, so that no target of an evaluation is in a window that is trained with.

    Args:
        labels: of all training samples, int64 [N]; None for texts, whose samples are in the order of the text.
    """
    kept: list[Indices] = []
    validation: list[Indices] = []
    test: list[Indices] = []
    for client, size in enumerate(shards.sizes.tolist()):
        own = np.sort(shards[client])
        count = min(math.floor(part * size + 0.5), max(size - 1, 0))
        if labels is None:
            kept.append(own[: size - count])
            validation.append(own[size - count : size - count + count // 2])
            test.append(own[size - count + count // 2 :])
            continue
        rng = generator(seed, "withheld", client)
        own = rng.permutation(own)
        own = own[np.argsort(labels[own], kind="stable")]
        places = ((np.arange(count) + rng.random()) * (size / max(count, 1))).astype(np.int64).clip(max=size - 1)
        kept.append(np.sort(np.delete(own, places)))
        test.append(np.sort(own[places[::2]]))
        validation.append(np.sort(own[places[1::2]]))
    train, held, tested = (
        Shards.from_sizes(np.concatenate(pieces), np.array(list(map(len, pieces)))) for pieces in (kept, validation, test)
    )
    return train, held, tested
