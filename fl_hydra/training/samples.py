"""A set of samples on the device."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor

from fl_hydra.randomness import generator


class Samples(ABC):
    """Inputs, from which batches are gathered, and their targets.

    targets: int64 [N], or [N, positions] if every position has one; negative where there is none. eval_subset_size: how many samples,
    from the first, an evaluation during a run uses.
    """

    targets: Tensor
    eval_subset_size: int

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def device(self) -> torch.device:
        return self.targets.device

    def fair(self, count: int) -> Tensor:
        """A representative subset of the samples, int64 [count], ascending: the first ones of a fixed order."""
        return torch.from_numpy(np.sort(generator(0, "evaluation").permutation(len(self))[:count])).to(self.device)

    @abstractmethod
    def drawn(self, indices: Tensor, streams: Tensor, positions: Tensor) -> Tensor:
        """Training samples, with random augmentation if there is any: a function of (stream, position) alone.

        Args:
            indices: int64 [n], which samples.
            streams: int64 [n], a 32-bit number for each (seed, client): see :func:`augmentation_stream`.
            positions: int64 [n], how many samples that client drew before.

        Returns:
            [n, ...].
        """

    @abstractmethod
    def plain(self, indices: Tensor) -> Tensor:
        """Samples int64 [n] without augmentation: [n, ...]."""
