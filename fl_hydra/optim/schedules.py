"""Learning-rate schedules: a factor on the peak rate, as a function of the samples processed and the budget.

Counting samples rather than steps or epochs gives every (K, J, batch size) of a comparison the same curve. A step's factor is
read at the samples processed before it; in warm-up, at those after it, so that the first rate is never 0.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fl_hydra.errors import require
from fl_hydra.registry import Component, Registry


@dataclass
class Scheduler(Component):
    """Optional linear warm-up, then the subclass's schedule over the rest of the budget.

    The peak rate and the warm-up can grow with the batch size (You et al., ICLR 2020, section 4: rate by the square root, warm-up
    linearly), and the rate also with the number of workers.
    """

    warmup: float = 0.0
    """Fraction of the budget over which the rate rises linearly to its peak."""

    scale_batch: str = "none"
    """How the peak rate grows with batch_size / reference: none, sqrt or linear."""

    scale_K: str = "none"
    """How the peak rate grows with the number of rows that a round averages: none, sqrt or linear."""

    scale_warmup: bool = False
    """Whether the warm-up grows linearly with batch_size / reference."""

    reference: int = 64
    """The batch size that the rate and the warm-up were chosen for."""

    def __post_init__(self) -> None:
        require(0 <= self.warmup < 1, f"scheduler.warmup={self.warmup}: a fraction of the budget, at least 0 and below 1, is needed")
        for name in ("scale_batch", "scale_K"):
            require(getattr(self, name) in SCALINGS, f"scheduler.{name}={getattr(self, name)}: choose none, sqrt or linear")
        require(self.reference >= 1, f"scheduler.reference={self.reference}: a batch size of at least 1 is needed")

    def identity(self) -> dict[str, Any]:
        scales_warmup = self.scale_warmup and self.warmup > 0
        unused = {} if scales_warmup or self.scale_batch != "none" else {"reference": None}
        return {**super().identity(), "scale_warmup": scales_warmup, **unused}

    def check(self, batch_size: int) -> None:
        """Refuse a batch size whose warm-up would never end.

        Raises:
            UserError: naming the largest that works.
        """
        longest = self.reference / self.warmup if self.warmup else 0
        require(
            self.warmup_of(batch_size) < 1,
            f"scheduler.warmup={self.warmup:g} of the budget at batch size {self.reference} is {self.warmup_of(batch_size):g} at "
            f"batch_size={batch_size}: the warm-up must end before the budget; choose a batch size below {longest:g} or a shorter warm-up",
        )

    def scale(self, batch_size: int, rows: int) -> float:
        """The ratio of the peak rate to the optimizer's."""
        return float(SCALINGS[self.scale_batch](batch_size / self.reference) * SCALINGS[self.scale_K](rows))

    def warmup_of(self, batch_size: int) -> float:
        """Fraction of the budget that the warm-up takes."""
        return self.warmup * batch_size / self.reference if self.scale_warmup else self.warmup

    def factor(self, before: int, step: int, budget: int, batch_size: int | None = None) -> float:
        """The factor on the peak rate at a local step.

        Args:
            before: samples processed before the step.
            step: samples of the step.
            budget: samples of the whole run.
            batch_size: of a row; None: the reference.
        """
        warmup = self.warmup_of(batch_size or self.reference) * budget
        if before < warmup:
            return min(1.0, (before + step) / warmup)
        return self.decay((before - warmup) / (budget - warmup))

    @abstractmethod
    def decay(self, progress: float) -> float:
        """The factor once the fraction `progress`, in [0, 1), of the budget after the warm-up is spent; 1 at 0."""


SCALINGS: dict[str, Callable[[float], float]] = {"none": lambda ratio: 1.0, "sqrt": math.sqrt, "linear": float}
"""How a rate grows with a ratio."""


def _check_end(end: float, lowest_allowed: bool = True) -> None:
    require(
        0 <= end <= 1 and (end > 0 or lowest_allowed),
        f"scheduler.end={end}: the last fraction of the rate must be {'at least' if lowest_allowed else 'above'} 0 and at most 1",
    )


schedulers: Registry[Scheduler] = Registry("scheduler", "fl_hydra.optim")


@schedulers.register
@dataclass
class Constant(Scheduler):
    """The peak rate throughout."""

    name: str = "constant"

    def decay(self, progress: float) -> float:
        return 1.0


@schedulers.register
@dataclass
class Cosine(Scheduler):
    """Cosine annealing without restarts (Loshchilov and Hutter 2017, equation 5): end + (1 - end)(1 + cos(pi t)) / 2."""

    name: str = "cosine"
    end: float = 0.0
    """Fraction of the peak rate at the end of the budget."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_end(self.end)

    def decay(self, progress: float) -> float:
        return self.end + (1 - self.end) * (1 + math.cos(math.pi * progress)) / 2


@schedulers.register
@dataclass
class Step(Scheduler):
    """The rate is multiplied by `drop` at each milestone, a fraction of the budget after warm-up."""

    name: str = "step"
    milestones: list[float] = field(default_factory=lambda: [0.5, 0.75])
    """Fractions of the budget at which the rate falls."""
    drop: float = 0.1
    """What the rate is multiplied by at each milestone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            all(0 < milestone < 1 for milestone in self.milestones),
            f"scheduler.milestones={list(self.milestones)}: fractions of the budget, above 0 and below 1, are needed",
        )
        require(0 < self.drop <= 1, f"scheduler.drop={self.drop}: must be above 0 and at most 1")

    def decay(self, progress: float) -> float:
        return float(self.drop ** sum(progress >= milestone for milestone in self.milestones))


@schedulers.register
@dataclass
class Linear(Scheduler):
    """A straight line from 1 to `end`."""

    name: str = "linear"
    end: float = 0.0
    """Fraction of the peak rate at the end of the budget."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_end(self.end)

    def decay(self, progress: float) -> float:
        return 1 + (self.end - 1) * progress


@schedulers.register
@dataclass
class Exponential(Scheduler):
    """Geometric decay from 1 to `end`."""

    name: str = "exponential"
    end: float = 0.01
    """Fraction of the peak rate at the end of the budget."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_end(self.end, lowest_allowed=False)

    def decay(self, progress: float) -> float:
        return float(self.end**progress)


@schedulers.register
@dataclass
class Polynomial(Scheduler):
    """end + (1 - end)(1 - t)^power."""

    name: str = "polynomial"
    power: float = 2.0
    """Exponent of the remaining fraction of the budget; 1: a straight line."""
    end: float = 0.0
    """Fraction of the peak rate at the end of the budget."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.power > 0, f"scheduler.power={self.power}: must be greater than 0")
        _check_end(self.end)

    def decay(self, progress: float) -> float:
        return float(self.end + (1 - self.end) * (1 - progress) ** self.power)
