"""A round's batches: one buffer of indices, from which samples are gathered, and images augmented, on the device as they are needed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fl_hydra.arrays import Indices
from fl_hydra.devices import to_device
from fl_hydra.randomness import hash_uniform
from fl_hydra.seams.rows import CALLS, METER_WIDTH, Batch
from fl_hydra.training.samples import Samples

CPU_SLAB, GPU_SLAB = 512, 16_384
"""Samples that are gathered (images: cropped and normalised) at once: enough to amortise calls, few enough for a CPU's cache."""

OF_LAYERS = 2**62
"""Larger than any sample's position: hashed with a client's stream, it gives the stream of its model's random layers."""


@dataclass(frozen=True)
class Beside:
    """Tensors of some rows' models besides their parameters: running statistics [rows, size] and frozen tensors [size]; None if there are
    none. fixed: whether the statistics no longer change."""

    statistics: Tensor | None = None
    frozen: Tensor | None = None
    fixed: bool = False


class BatchStream:
    """The batches of every row in some steps of a round. Everything but `counts` and `calls` is a tensor on the device.

    Args:
        samples: the training samples.
        indices: int64 [rows, batches, batch_size], positions in `samples`.
        streams: int64 [rows], the number that identifies each row's crops and flips.
        cursors: int64 [rows], samples that each row's client drew before these.
        weights: [rows, batches, batch_size], 1 for samples and 0 for padding; None without padding.
        meter: [rows, 3], to which each batch adds its summed loss, correct predictions and targets.
        counts: int64 [rows, batches], samples of each batch without padding.
        calls: int64 [rows, batches, 3], counts the computations on each batch (:data:`fl_hydra.seams.rows.CALLS`).
        draws: whether layers of the model draw random numbers.
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
        calls: Indices,
        draws: bool = False,
    ) -> None:
        rows, self._batches, self._batch_size = indices.shape
        self._samples, self._indices, self._weights = samples, indices, weights
        self.meter, self.counts, self.calls = meter, counts, calls
        self._streams = streams.view(rows, 1, 1)
        within = torch.arange(self._batches * self._batch_size, device=samples.device).view(1, self._batches, self._batch_size)
        self._positions = cursors.view(rows, 1, 1) + within
        # The positions themselves identify crops and flips.
        names = hash_uniform(self._streams, torch.full_like(self._streams, OF_LAYERS)) if draws else None
        self._draws = None if names is None else hash_uniform(names, self._positions)
        self._targets = samples.targets[indices]
        self._slab_size = CPU_SLAB if samples.device.type == "cpu" else GPU_SLAB
        self._slab = self._augment(slice(0, rows), slice(0, self._batches)) if indices.numel() <= self._slab_size else None

    def _augment(self, rows: slice, batches: slice) -> Tensor:
        indices = self._indices[rows, batches]
        streams, positions = self._streams[rows].expand_as(indices), self._positions[rows, batches]
        inputs = self._samples.drawn(indices.reshape(-1), streams.reshape(-1), positions.reshape(-1))
        return inputs.view(*indices.shape, *inputs.shape[1:])

    def at(self, rows: Indices, batches: Indices, beside: Beside) -> Batch:
        """One batch for each of some rows, int64 [n]; `batches`, int64 [n], says which.

        Its meter and `calls` begin at 0. beside: tensors of the rows' models besides their parameters.
        """
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
        return Batch(
            inputs,
            self._targets[row, batch],
            weights,
            meter,
            self.counts[rows, batches],
            np.zeros((len(rows), len(CALLS)), np.int64),
            draws=None if self._draws is None else self._draws[row, batch],
            statistics=beside.statistics,
            frozen=beside.frozen,
        )

    def batches(self, rows: slice, cut: bool, beside: Beside) -> Iterator[Batch]:
        """The batches of some rows, in order.

        Args:
            cut: whether they have padding. beside: tensors of the rows' models besides their parameters.
        """
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
                    self.calls[rows, batch],
                    draws=None if self._draws is None else self._draws[rows, batch],
                    statistics=beside.statistics,
                    frozen=beside.frozen,
                    fixed=beside.fixed,
                )
