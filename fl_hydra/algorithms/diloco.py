"""DiLoCo (Douillard et al. 2023, algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fl_hydra.algorithms.base import algorithms
from fl_hydra.algorithms.localsgd import LocalSGD


@algorithms.register
@dataclass
class DiLoCo(LocalSGD):
    """AdamW inside, whose moments stay with their worker; Nesterov momentum outside, at a rate that is not scheduled.

    J is the paper's H, 500 there; by default 64 here, the longest round of the assignment.
    """

    name: str = "diloco"
    label = "DiLoCo"

    J: ClassVar[int | None] = 64
