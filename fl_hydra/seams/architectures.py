"""The architectures of a run's clients."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from fl_hydra.arrays import Indices
from fl_hydra.seams.layout import Layout

Mask = np.ndarray[tuple[int], np.dtype[np.bool_]]


@dataclass(frozen=True, eq=False)
class Architectures:
    """The architectures of a run's models, one after the other: client k has that of number k mod n.

    modules: without the parameters of a run; their own are never read. layouts: of their parameters. example: inputs of two samples, from
    which shapes inside the modules follow.
    """

    modules: tuple[nn.Module, ...]
    layouts: tuple[Layout, ...]
    example: Tensor

    def __len__(self) -> int:
        return len(self.modules)

    def number(self, client: int) -> int:
        """The number of a client's architecture."""
        return client % len(self.modules)

    def have(self, clients: Indices, number: int) -> Mask:
        """Which of some clients, int64 [n], have the architecture of this number: bool [n]."""
        return np.asarray(clients % len(self.modules) == number, np.bool_)
