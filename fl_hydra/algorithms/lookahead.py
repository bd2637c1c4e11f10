"""Lookahead (Zhang et al., NeurIPS 2019, algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fl_hydra.algorithms.base import algorithms
from fl_hydra.algorithms.localsgd import LocalSGD


@algorithms.register
@dataclass
class Lookahead(LocalSGD):
    """One worker: J fast steps (the paper's k), then the slow weights move a fraction, `server.lr` (alpha), of the way to the fast ones."""

    name: str = "lookahead"
    label = "Lookahead"

    K: ClassVar[int | None] = 1
    J: ClassVar[int | None] = 5
