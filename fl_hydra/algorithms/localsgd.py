"""LocalSGD (Stich, ICLR 2019; Lin et al., ICLR 2020, algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fl_hydra.algorithms.base import Algorithm, algorithms
from fl_hydra.errors import require


@algorithms.register
@dataclass
class LocalSGD(Algorithm):
    """All K workers take J steps each from the common model, then average it with equal weights.

    Momentum stays with its worker, neither averaged nor reset, as in the authors' code. With J=1 this is still exactly
    minibatch SGD with momentum over the K batches together, since the recursion is linear.
    """

    name: str = "localsgd"

    federated: ClassVar[bool] = False
    K: ClassVar[int | None] = 4
    C: ClassVar[float | None] = 1.0
    J: ClassVar[int | None] = 8
    keeps_optimizer: ClassVar[bool] = True

    def check(self, K: int, C: float) -> None:
        super().check(K, C)
        require(C == 1, f"C={C}: with algorithm={self.name} all workers take part in every round; leave C out")
