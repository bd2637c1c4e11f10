"""What a model of the workers' speeds is."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from fl_hydra.arrays import Reals
from fl_hydra.errors import require
from fl_hydra.registry import Component, Registry


@dataclass
class Speeds(Component):
    """The simulated clock: worker k computes throughput * speed_k samples a second. Only simulated time depends on it,
    and, in asynchronous methods or with `local_steps.spread`, who takes how many steps.

    Workers wait for the slowest wherever they meet: at the end of a round, at every exchange within it, and after each step that
    `data_parallel` shares among them.
    """

    throughput: float = 6400.0
    """Training samples per second at speed 1."""

    differ_by: ClassVar[str] = ""
    """The field that says how much speeds differ; empty if they do not."""

    def __post_init__(self) -> None:
        require(0 < self.throughput < math.inf, f"speeds.throughput={self.throughput}: must be greater than 0 samples a second, and finite")

    @abstractmethod
    def draw(self, K: int, seed: int) -> Reals:
        """Speeds of all workers, float64 [K], all above 0."""


speed_models: Registry[Speeds] = Registry("speeds", "fl_hydra.speeds")
