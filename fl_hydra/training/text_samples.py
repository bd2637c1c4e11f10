"""Text on the device: one array of characters, from which windows are gathered a batch at a time."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fl_hydra.arrays import Indices
from fl_hydra.training.samples import Samples

EVAL_SUBSET_SIZE = 10_000
"""Samples of each set that an evaluation during a run uses."""


class Text(Samples):
    """Windows over one array of characters; millions of overlapping ones take no more memory than their positions.

    Args:
        characters: uint8 [T].
        starts: int64 [N], where each window begins.
        length: characters of a window. Its target is the next character, or, with `everywhere`, the character after each position.
        everywhere: whether every position has a target; then the character 0 is padding, and no target.
    """

    def __init__(
        self, characters: NDArray[np.uint8], starts: Indices, length: int, *, everywhere: bool, device: torch.device | str = "cpu"
    ) -> None:
        text = torch.from_numpy(characters).to(device)
        self._starts = torch.from_numpy(starts).to(device)
        # Every run of `length` characters, from any start; the runs overlap in memory.
        self._runs = text.as_strided((max(0, len(text) - length + 1), length), (1, 1))
        if everywhere:
            following = self._runs[self._starts + 1].long()
            self.targets = following.masked_fill_(following == 0, -100)
        else:
            self.targets = text[self._starts + length].long()
        self.eval_subset_size = min(EVAL_SUBSET_SIZE, len(starts))

    def fair(self, count: int) -> Tensor:
        return torch.arange(count, device=self.device)  # evaluation samples are already in such an order

    def drawn(self, indices: Tensor, streams: Tensor, positions: Tensor) -> Tensor:
        """Windows, uint8 [n, length]: text is not augmented."""
        return self.plain(indices)

    def plain(self, indices: Tensor) -> Tensor:
        """Windows, uint8 [n, length]."""
        return self._runs.index_select(0, self._starts[indices])
