"""A round's batches: one buffer of indices, from which samples are gathered, and images augmented, on the device as they are needed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from fl_hydra.arrays import Indices
from fl_hydra.devices import to_device
from fl_hydra.training.rows import METER_WIDTH, Batch
from fl_hydra.training.samples import Samples

CPU_SLAB, GPU_SLAB = 512, 16_384
"""Samples that are gathered (images: cropped and normalised) in one go: enough to hide the calls, few enough to stay in a CPU's cache."""


class BatchStream:
    """The batches of every row in some steps of a round. Everything is a tensor on the device, but the counts.

    Args:
        samples: the training samples.
        indices: int64 [rows, batches, batch_size], positions in `samples`.
        streams: int64 [rows], the number that names each row's crops and flips.
        cursors: int64 [rows], samples that each row's client had drawn before these.
        weights: [rows, batches, batch_size], 1 where a sample counts and 0 where it pads; None where all count.
        meter: [rows, 3], to which each batch adds its summed loss, correct predictions and targets.
        counts: int64 [rows, batches], samples that count in each batch.
        gradient_calls: int64 [rows, batches], counts up how often a gradient of each batch was asked for.
    """

    def __init__(
        self,
        samples: Samples,
        indices: Tensor,
        streams: Tensor,
        cursors: Tensor,
        weights: Tensor | None,
        meter: Tensor,
        counts: Indices,
        gradient_calls: Indices,
    ) -> None:
        rows, self._batches, self._batch_size = indices.shape
        self._samples, self._indices, self._weights = samples, indices, weights
        self.meter, self.counts, self.gradient_calls = meter, counts, gradient_calls
        self._streams = streams.view(rows, 1, 1)
        within = torch.arange(self._batches * self._batch_size, device=samples.device).view(1, self._batches, self._batch_size)
        self._positions = cursors.view(rows, 1, 1) + within
        self._targets = samples.targets[indices]
        self._slab_size = CPU_SLAB if samples.device.type == "cpu" else GPU_SLAB
        self._slab = self._augment(slice(0, rows), slice(0, self._batches)) if indices.numel() <= self._slab_size else None

    def _augment(self, rows: slice, batches: slice) -> Tensor:
        indices = self._indices[rows, batches]
        streams, positions = self._streams[rows].expand_as(indices), self._positions[rows, batches]
        inputs = self._samples.drawn(indices.reshape(-1), streams.reshape(-1), positions.reshape(-1))
        return inputs.view(*indices.shape, *inputs.shape[1:])

    def at(self, rows: Indices, batches: Indices) -> Batch:
        """One batch of each of some rows, int64 [n], of which each its own, int64 [n]. Its meter and its `gradient_calls` begin at 0."""
        row, batch = (to_device(positions, self._indices.device) for positions in (rows, batches))
        indices = self._indices[row, batch]
        if self._slab is None:
            streams = self._streams[row, 0].expand_as(indices)
            inputs = self._samples.drawn(indices.reshape(-1), streams.reshape(-1), self._positions[row, batch].reshape(-1))
            inputs = inputs.view(*indices.shape, *inputs.shape[1:])
        else:
            inputs = self._slab[row, batch]
        weights = None if self._weights is None else self._weights[row, batch]
        meter = torch.zeros(len(rows), METER_WIDTH, dtype=self.meter.dtype, device=self.meter.device)
        return Batch(inputs, self._targets[row, batch], weights, meter, self.counts[rows, batches], np.zeros(len(rows), np.int64))

    def batches(self, rows: slice, cut: bool) -> Iterator[Batch]:
        """The batches of some rows, one after the other. cut: whether there are samples among them that do not count."""
        window = max(1, self._slab_size // ((rows.stop - rows.start) * self._batch_size))
        for first in range(0, self._batches, window):
            last = min(first + window, self._batches)
            slab = self._augment(rows, slice(first, last)) if self._slab is None else self._slab[rows, first:last]
            for batch in range(first, last):
                yield Batch(
                    slab[:, batch - first],
                    self._targets[rows, batch],
                    self._weights[rows, batch] if cut and self._weights is not None else None,
                    self.meter[rows],
                    self.counts[rows, batch],
                    self.gradient_calls[rows, batch],
                )
