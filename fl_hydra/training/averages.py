"""Stochastic weight averaging of the server's models (Izmailov et al., UAI 2018, algorithm 1; in rounds, Caldarola et al., ECCV 2022).

Once a part of the budget is spent, an average begins with the model of that moment, and takes in the model at the end of every cycle of
rounds: w <- (n w + x) / (n + 1). It is evaluated from then on, while training continues from x; it is the model after the last round.
BatchNorm's running statistics are averaged in the same way, where the paper computes them anew on training samples, which a server has not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fl_hydra.errors import require

if TYPE_CHECKING:
    from torch import Tensor

    from fl_hydra.algorithms.base import State

AVERAGE, AVERAGE_STATISTICS = "swa", "swa_statistics"
"""Their names in `State.buffers`."""


@dataclass
class SWA:
    """Whether and how the server's models are averaged."""

    start: float | None = None
    """Fraction of the budget from which the server's models are averaged (SWA). null: never."""
    cycle: int = 10
    """Rounds between the models that are averaged."""
    lr2: float | None = None
    """Learning rate to which the local one falls linearly within each cycle. null: it does not fall."""

    def __post_init__(self) -> None:
        require(
            self.start is None or 0 <= self.start < 1,
            f"swa.start={self.start}: a fraction of the budget, at least 0 and below 1; null takes no average",
        )
        require(self.cycle >= 1, f"swa.cycle={self.cycle}: at least 1 round is needed between two models")
        require(self.lr2 is None or 0 < self.lr2 < math.inf, f"swa.lr2={self.lr2}: the learning rate must be greater than 0 and finite")

    def factor(self, rounds: int | None, lr: float) -> float:
        """What multiplies the learning rates of a round: 1 - t + t swa.lr2 / lr, where t = 1 / cycle, ..., 1 within a cycle.

        Args:
            rounds: rounds since the average began; None before.
            lr: of the local optimizer.
        """
        if rounds is None or self.lr2 is None:
            return 1.0
        t = (rounds % self.cycle + 1) / self.cycle
        return 1 - t + t * self.lr2 / lr

    def follow(self, rounds: int | None, done: float, state: State, models: Tensor) -> int | None:
        """Take a run's models, [models, P], into its average where they are due, in place.

        Args:
            rounds: as before this round. done: the fraction of the budget that is spent.

        Returns:
            rounds since the average began; None before.
        """
        assert self.start is not None
        if rounds is None and done < self.start:
            return None
        rounds = 0 if rounds is None else rounds + 1
        if rounds % self.cycle == 0:
            part = 1 / (rounds // self.cycle + 1)
            state.buffers[AVERAGE].lerp_(models.mean(0, keepdim=True), part)
            if "model" in state.buffers:
                state.buffers[AVERAGE_STATISTICS].lerp_(state.buffers["model"], part)
        return rounds


def averages(state: State) -> dict[str, Tensor]:
    """What an average needs in `State.buffers`, for states that were just made: copies of the models and their statistics."""
    statistics = {AVERAGE_STATISTICS: state.buffers["model"].clone()} if "model" in state.buffers else {}
    return {AVERAGE: state.model.clone(), **statistics}
