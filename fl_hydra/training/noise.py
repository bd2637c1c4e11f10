"""The gradient noise scale (McCandlish et al. 2018, appendix A.1), from gradients that a round computes anyway."""

from __future__ import annotations

import torch
from torch import Tensor

DECAY = 0.95
"""Decay per round of the running means of |G|^2 and tr(Sigma), whose ratio is reported, as in the paper."""


class NoiseScale:
    """B_noise = tr(Sigma) / |G|^2 in samples, where G is the gradient and Sigma the covariance of a single sample's gradient.

    At the first local step of a round all m rows of a run hold the same model, so their gradients are those of m small batches of B
    samples, and the mean of these is that of a large batch of m B: equations A.2 and A.3. The estimates of |G|^2 and tr(Sigma) are unbiased
    for iid shards; otherwise the differences between shards count as noise.

    Args:
        runs: that train together.
        device: where.
    """

    def __init__(self, runs: int, device: torch.device) -> None:
        self._device = device
        self.averages = torch.zeros(runs, 2, dtype=torch.float64, device=device)
        """Running means of |G|^2 and tr(Sigma), [runs, 2]."""

    def allocate(self, lanes: int, rows: list[int], size: int, dtype: torch.dtype) -> None:
        """Allocate buffers for rounds with these numbers of rows of each run, of `size` parameters; `lanes` blocks train at once."""
        self.rows = rows
        """Rows of each run in a round."""
        self._squares = torch.zeros(sum(rows), dtype=torch.float64, device=self._device)
        self._sums = torch.zeros(lanes, len(rows), size, dtype=dtype, device=self._device)

    def retain_runs(self, runs: Tensor) -> None:
        """Keep only these runs, int64."""
        self.averages = self.averages[runs]

    def begin(self) -> None:
        """Begin a round."""
        self._sums.zero_()

    def watch(self, gradient: Tensor, lane: int, run: int, block: slice) -> None:
        """Add the gradients [rows, P] of a block's first local step to a lane's sum; all rows are of one run."""
        self._squares[block] = gradient.square().sum(1)
        self._sums[lane, run] += gradient.sum(0)

    def end(self, batch_size: int, whole: list[bool]) -> None:
        """End a round: its first gradients, of batches of this size, enter the running means of runs whose first batches were `whole`."""
        large = self._sums[0].double()
        for further in self._sums[1:]:  # one after the other, so that empty lanes do not change the result
            large += further
        start = 0
        for run, rows in enumerate(self.rows):
            small_square = self._squares[start : start + rows].mean()
            start += rows
            if rows == 1 or not whole[run]:
                continue
            large_square = (large[run] / rows).square().sum()
            small_batch, large_batch = batch_size, rows * batch_size
            signal = (large_batch * large_square - small_batch * small_square) / (large_batch - small_batch)
            noise = (small_square - large_square) / (1 / small_batch - 1 / large_batch)
            self.averages[run].mul_(DECAY).add_(torch.stack([signal, noise]), alpha=1 - DECAY)

    def values(self) -> Tensor:
        """The noise scale of each run, float64 [runs]; not finite while there is no estimate of a positive |G|^2."""
        signal, noise = self.averages.unbind(1)
        return torch.where(signal > 0, noise / signal, torch.nan)
