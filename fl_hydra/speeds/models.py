"""Equal, evenly spread, log-normal, and with stragglers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fl_hydra.arrays import Reals
from fl_hydra.errors import require
from fl_hydra.randomness import generator
from fl_hydra.speeds.base import Speeds, speed_models


@speed_models.register
@dataclass
class Equal(Speeds):
    """Everyone at speed 1."""

    name: str = "equal"

    def draw(self, K: int, seed: int) -> Reals:
        return np.ones(K)


@speed_models.register
@dataclass
class Linear(Speeds):
    """Equally spaced from 1 - spread (worker 0) to 1 + spread."""

    name: str = "linear"
    spread: float = 0.5
    """Distance of the slowest and the fastest from speed 1."""

    version: ClassVar[int] = 2
    differ_by: ClassVar[str] = "spread"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.spread < 1, f"speeds.spread={self.spread}: at least 0 and below 1 is needed; at 1 a worker would stand still")

    def draw(self, K: int, seed: int) -> Reals:
        return np.linspace(1 - self.spread, 1 + self.spread, K) if K > 1 else np.ones(1)


@speed_models.register
@dataclass
class LogNormal(Speeds):
    """exp(sigma z) with z standard normal, drawn once for each worker; the median is 1."""

    name: str = "lognormal"
    sigma: float = 0.5
    """Standard deviation of the logarithm of speeds."""

    version: ClassVar[int] = 2
    differ_by: ClassVar[str] = "sigma"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.sigma <= 5, f"speeds.sigma={self.sigma}: from 0 to 5 is allowed")

    def draw(self, K: int, seed: int) -> Reals:
        return np.exp(self.sigma * generator(seed, "speeds").standard_normal(K))


@speed_models.register
@dataclass
class Stragglers(Speeds):
    """round(fraction K) workers, at least one, drawn once, at the given speed; the others at 1."""

    name: str = "stragglers"
    fraction: float = 0.25
    """Fraction of the workers that are slow, at least one."""
    speed: float = 0.2
    """Speed of the slow workers."""

    version: ClassVar[int] = 2
    differ_by: ClassVar[str] = "speed"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.fraction <= 1, f"speeds.fraction={self.fraction}: above 0 and at most 1 is needed")
        require(
            0 < self.speed < math.inf,
            f"speeds.speed={self.speed}: must be greater than 0, and finite; a worker at speed 0 would never finish a step",
        )

    def draw(self, K: int, seed: int) -> Reals:
        speeds = np.ones(K)
        speeds[generator(seed, "speeds").permutation(K)[: max(1, round(self.fraction * K))]] = self.speed
        return speeds
