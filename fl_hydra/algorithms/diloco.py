"""DiLoCo (Douillard et al. 2023, algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fl_hydra.algorithms.base import algorithms
from fl_hydra.algorithms.localsgd import LocalSGD


@algorithms.register
@dataclass
class DiLoCo(LocalSGD):
    """AdamW as the inner optimizer, whose moments stay with their worker; Nesterov momentum as the outer one, at a constant rate.

    J is the paper's H, which is 500 there; the default here is 64, the longest round of the assignment.
    """

    name: str = "diloco"
    label = "DiLoCo"

    J: ClassVar[int | None] = 64
