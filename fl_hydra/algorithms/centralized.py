"""Centralized training: the baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fl_hydra.algorithms.base import algorithms
from fl_hydra.algorithms.localsgd import Workers


@algorithms.register
@dataclass
class Centralized(Workers):
    """One worker that holds all samples; a round is one pass over them."""

    name: str = "centralized"
    label = "Centralized"

    K: ClassVar[int | None] = None
    C: ClassVar[float | None] = None
    J: ClassVar[int | None] = None
