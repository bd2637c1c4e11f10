"""Which images are held out for validation where they belong to clients: the same part of each client's, stratified by class."""

from __future__ import annotations

import numpy as np

from fl_hydra.arrays import Indices
from fl_hydra.randomness import generator


def held_of_clients(cells: Indices, fraction: float, seed: int) -> Indices:
    """How many images of each client and class are held out; int64 [clients, classes]. At least one of each client's is not.

    A client's images, ordered by class, are counted off in equal strides from a place that is drawn. So the number of a client's images
    that are held out depends on its size alone, and that of each class is its share, rounded up or down.

    Args:
        cells: int64 [clients, classes], images of each. fraction: that is held out. seed: of the draw.
    """
    sizes = cells.sum(1)
    counts = np.minimum(np.rint(fraction * sizes).astype(np.int64), sizes - 1)
    offsets = generator(seed, "validation-clients").random(len(cells))
    held = np.zeros_like(cells)
    for client in np.flatnonzero(counts > 0):
        places = ((np.arange(counts[client]) + offsets[client]) * (sizes[client] / counts[client])).astype(np.int64)
        classes = np.searchsorted(np.cumsum(cells[client]), np.minimum(places, sizes[client] - 1), side="right")
        held[client] = np.bincount(classes, minlength=cells.shape[1])
    return held


def members_held(labels: Indices, clients: Indices, held: Indices, seed: int) -> list[Indices]:
    """Positions of the images that are held out, some from each client and class.

    Args:
        labels, clients: int64 [N]. held: int64 [clients, classes], how many of each. seed: decides which ones.
    """
    classes = held.shape[1]
    cell = clients * classes + labels
    order = np.argsort(cell, kind="stable")
    first = np.searchsorted(cell[order], np.arange(held.size + 1))
    return [
        generator(seed, "validation", each // classes, each % classes).permutation(order[first[each] : first[each + 1]])[:count]
        for each, count in enumerate(held.ravel().tolist())
        if count
    ]
