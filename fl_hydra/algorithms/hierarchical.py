"""Hierarchical LocalSGD (Lin et al., ICLR 2020, section 5 and algorithm 5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from fl_hydra.algorithms.base import algorithms
from fl_hydra.algorithms.localsgd import LocalSGD
from fl_hydra.errors import require

if TYPE_CHECKING:
    from fl_hydra.arrays import Reals
    from fl_hydra.seams.fabric import Traffic


@algorithms.register
@dataclass
class Hierarchical(LocalSGD):
    """Workers are averaged within their block after every J steps, and over all blocks after every J_b such periods, which make a round.

    With J_b=1 this is LocalSGD; so it is with one block and momentum=keep, except for the weights in a last round that the budget cuts.
    """

    name: str = "hierarchical"
    label = "Hierarchical"
    blocks: int = 2
    """Blocks of neighbouring workers (the machines of a rack, say); must divide K."""
    J_b: int = 4
    """Block averages in a round, the last of which is one of all workers (the paper's H^b)."""

    coupled: ClassVar[bool] = True
    lockstep: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.J_b >= 1, f"algorithm.J_b={self.J_b}: at least 1 period of a block is needed in a round")

    def check(self, K: int, C: float) -> None:
        super().check(K, C)
        divisors = [str(number) for number in range(1, K + 1) if K % number == 0]
        require(
            str(self.blocks) in divisors,
            f"algorithm.blocks={self.blocks}: must divide K={K} workers evenly; choose {', '.join(divisors)}",
        )

    def round_steps(self, J: int) -> int:
        return J * self.J_b

    def mixing(self, K: int, J: int, j: int, steps: int, taken: int) -> Reals | None:
        if (j + 1) % J or j + 1 == steps:  # the round's end averages all workers
            return None
        size = K // self.blocks
        return np.kron(np.eye(self.blocks), np.full((size, size), 1 / size))

    def wait(self, ready: Reals, mixing: Reals) -> Reals:
        """A block waits only for its own workers."""
        last: Reals = np.where(mixing != 0, ready, 0).max(1)
        return last

    def charge(self, traffic: Traffic, mixing: Reals, payload: int) -> None:
        if self.blocks < len(mixing):
            traffic.average(len(mixing), payload)
            traffic.block_averages += 1
