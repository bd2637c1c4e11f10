"""A round's batches: one buffer of indices, from which images are gathered and augmented on the device as they are needed."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from fl_hydra.data.dataset import Indices
from fl_hydra.data.order import Order
from fl_hydra.training.images import Images, augmentation_stream
from fl_hydra.training.rows import Batch

SLAB = 512
"""Images that are cropped and normalised in one go: enough to hide the calls, few enough to stay in a CPU's cache."""

_stream = lru_cache(maxsize=2**17)(augmentation_stream)


class Draws:
    """The batches of every row in one round.

    Args:
        images: the training images.
        order: what each client draws.
        ids: int64 [rows], the clients.
        cursors: int64 [rows], samples each has drawn before.
        samples: int64 [rows], samples each draws in this round; fewer than batches * batch_size in a cut round.
        batches: batches of each row.
        batch_size: samples of a batch.
        seed: of the augmentation.
        dtype: of weights and meter.
    """

    def __init__(
        self,
        images: Images,
        order: Order,
        ids: Indices,
        cursors: Indices,
        samples: Indices,
        batches: int,
        batch_size: int,
        seed: int,
        dtype: torch.dtype,
    ) -> None:
        device = images.device
        rows, draws = len(ids), batches * batch_size
        self._images, self._batches, self._batch_size = images, batches, batch_size
        indices = np.stack([order.indices(client, cursor, draws) for client, cursor in zip(ids.tolist(), cursors.tolist(), strict=True)])
        streams = np.array([_stream(seed, client) for client in ids.tolist()], np.int64)
        self.counts = np.clip(samples[:, None] - np.arange(batches) * batch_size, 0, batch_size)
        """Samples that count in each batch; int64 [rows, batches]."""
        self.meter = torch.zeros(rows, 2, dtype=dtype, device=device)

        self._indices = torch.from_numpy(indices).to(device, non_blocking=True).view(rows, batches, batch_size)
        self._streams = torch.from_numpy(streams).to(device, non_blocking=True).view(rows, 1, 1)
        cursor = torch.from_numpy(cursors).to(device, non_blocking=True).view(rows, 1, 1)
        self._positions = cursor + torch.arange(draws, device=device).view(1, batches, batch_size)
        self._targets = images.labels[self._indices]
        self._weights: Tensor | None = None
        self.cut = bool((samples < draws).any())
        """Whether some row has fewer samples than its batches hold."""
        if self.cut:
            counting = np.arange(draws)[None] < samples[:, None]
            self._weights = torch.from_numpy(counting).to(device, dtype).view(rows, batches, batch_size)
        self._slab = self._augment(slice(0, rows), slice(0, batches)) if rows * draws <= SLAB else None

    def _augment(self, rows: slice, batches: slice) -> Tensor:
        indices = self._indices[rows, batches]
        streams, positions = self._streams[rows].expand_as(indices), self._positions[rows, batches]
        inputs = self._images.augmented(indices.reshape(-1), streams.reshape(-1), positions.reshape(-1))
        return inputs.view(*indices.shape, *inputs.shape[1:])

    def batches(self, rows: slice) -> Iterator[Batch]:
        """The batches of some rows, one after the other."""
        window = max(1, SLAB // ((rows.stop - rows.start) * self._batch_size))
        for first in range(0, self._batches, window):
            last = min(first + window, self._batches)
            slab = self._augment(rows, slice(first, last)) if self._slab is None else self._slab[rows, first:last]
            for batch in range(first, last):
                yield Batch(
                    slab[:, batch - first],
                    self._targets[rows, batch],
                    None if self._weights is None else self._weights[rows, batch],
                    self.meter[rows],
                    self.counts[rows, batch],
                )
