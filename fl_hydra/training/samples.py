"""A set of samples on the device."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor

from fl_hydra.randomness import generator


class Samples(ABC):
    """Inputs, from which batches are gathered, and their targets.

    targets: int64 [N], or [N, positions] where every position has one; negative where there is none. eval_subset_size: how many
    samples, the first ones, an evaluation in the middle of a run looks at; all at its end.
    """

    targets: Tensor
    eval_subset_size: int

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def device(self) -> torch.device:
        return self.targets.device

    def fair(self, count: int) -> Tensor:
        """Some samples that stand for all, int64 [count], ascending: the first ones of an order that never changes."""
        return torch.from_numpy(np.sort(generator(0, "evaluation").permutation(len(self))[:count])).to(self.device)

    @abstractmethod
    def drawn(self, indices: Tensor, streams: Tensor, positions: Tensor) -> Tensor:
        """Training samples, varied at random if they are: a function of (stream, position) alone.

        Args:
            indices: int64 [n], which samples.
            streams: int64 [n], a 32-bit number for each (seed, client): see :func:`augmentation_stream`.
            positions: int64 [n], how many samples that client had drawn before.

        Returns:
            [n, ...].
        """

    @abstractmethod
    def plain(self, indices: Tensor) -> Tensor:
        """Samples int64 [n] as they are: [n, ...]."""
