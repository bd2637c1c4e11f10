"""The base of rules for the number of local steps."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fl_hydra.arrays import Indices, Reals
from fl_hydra.errors import require
from fl_hydra.randomness import generator
from fl_hydra.registry import Component, Registry

Memory = dict[str, float]
"""Numbers that a rule keeps from round to round; they are part of every checkpoint."""


@dataclass(frozen=True)
class Measured:
    """What was measured in a round; NaN for what the rule does not ask for.

    loss: mean training loss over the round's batches. drift: sum of |w_k - w|^2 / (m (m - 1)) over the m rows, w their mean: on
    average, what independent noise adds to |w - x|^2. progress: |w - x|^2, x the model that the round began with.
    noise: the gradient noise scale, in samples (a ratio of running means).
    """

    loss: float = float("nan")
    drift: float = float("nan")
    progress: float = float("nan")
    noise: float = float("nan")


@dataclass
class LocalSteps(Component):
    """A rule that chooses the number of local steps before each round. The top-level J is its final or largest value.

    To add one, subclass this with `@local_step_rules.register`, list in `measures` what is to be measured, and override `steps`, and
    `observe` if the rule remembers anything. Whatever it chooses, the run spends its budget of samples exactly.
    """

    spread: float = 0.0
    """Unequal work: client k takes J_k steps, equally spaced from (1 - spread) J to (1 + spread) J, on average J; slow ones take fewer."""

    measures: ClassVar[frozenset[str]] = frozenset()
    """Fields of `Measured` that are read back after every round."""

    steady: ClassVar[bool] = False
    """Whether every round has the same number of steps."""

    def __post_init__(self) -> None:
        require(
            0 <= self.spread < 1, f"local_steps.spread={self.spread}: at least 0 and below 1 is needed, so that every client takes a step"
        )

    def check(self, J: int, steps: int) -> None:
        """Refuse a top-level J that the rule cannot end at, or never reaches.

        Args:
            J: the top-level J.
            steps: total steps per worker at J=1.

        Raises:
            UserError: naming what works.
        """

    @abstractmethod
    def steps(self, J: int, progress: float, taken: int, memory: Memory) -> int:
        """Local steps of the next round.

        Args:
            J: the top-level J.
            progress: fraction of the budget that is spent, in [0, 1).
            taken: local steps so far on the critical path, one after the other.
            memory: what the rule remembers.
        """

    def observe(self, measured: Measured, J: int, samples: int, progress: float, memory: Memory) -> None:
        """Learn from a round. samples: what all rows together would have processed with J=1."""

    def of_clients(self, steps: int, speeds: Reals, federated: bool, seed: int) -> Indices:
        """J_k of every client, int64 [K], by their speeds, float64 [K]: slower ones take fewer steps; the mean is exactly `steps`.

        Among equally fast workers, those with lower numbers take fewer; federated clients are shuffled first.
        """
        K = len(speeds)
        if not self.spread or K == 1:
            return np.full(K, steps, np.int64)
        lower = np.round(steps * self.spread * np.linspace(-1, 1, K)[: K // 2]).astype(np.int64).clip(min=1 - steps)
        offsets = np.concatenate([lower, np.zeros(K % 2, np.int64), -lower[::-1]])
        clients = generator(seed, "local steps").permutation(K) if federated else np.arange(K)
        J = np.full(K, steps, np.int64)
        J[clients[np.argsort(speeds[clients], kind="stable")]] += offsets
        return J


local_step_rules: Registry[LocalSteps] = Registry("local_steps", "fl_hydra.local_steps")
