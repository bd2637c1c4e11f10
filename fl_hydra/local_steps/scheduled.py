"""Schedules of the number of local steps, as functions of the budget spent."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from fl_hydra.errors import require
from fl_hydra.local_steps.base import LocalSteps, Memory, local_step_rules


@local_step_rules.register
@dataclass
class Fixed(LocalSteps):
    """J in every round."""

    name: str = "fixed"

    steady: ClassVar[bool] = True

    def steps(self, J: int, progress: float, taken: int, memory: Memory) -> int:
        return J


@local_step_rules.register
@dataclass
class Phases(LocalSteps):
    """Several numbers of steps in turn: `numbers[i]` until the fraction `borders[i]` of the budget is spent, J after the last."""

    name: str = "phases"
    borders: list[float] = field(default_factory=lambda: [0.25, 0.5])
    """Fractions of the budget at which the number of steps changes."""
    numbers: list[int] = field(default_factory=lambda: [1, 4])
    """Local steps before each border; J after the last."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            all(0 < border <= 1 for border in self.borders) and sorted(self.borders) == list(self.borders),
            f"local_steps.borders={list(self.borders)}: ascending fractions of the budget, above 0 and at most 1, are needed",
        )
        require(
            len(self.numbers) == len(self.borders) and all(number >= 1 for number in self.numbers),
            f"local_steps.numbers={list(self.numbers)}: a number of steps, at least 1, is needed before each of the "
            f"borders={list(self.borders)}; after the last it is J",
        )

    def steps(self, J: int, progress: float, taken: int, memory: Memory) -> int:
        return [*self.numbers, J][sum(progress >= border for border in self.borders)]


@local_step_rules.register
@dataclass
class PostLocal(LocalSteps):
    """Post-local SGD (Lin et al., ICLR 2020, section 3): one step until the switch, J after it.

    In the paper the switch is at the first drop of a learning rate that has been scaled and warmed up.
    Each worker keeps its own momentum before the switch too, as in the authors' code; PyTorch's implementation averages gradients
    there, so that the momenta of all workers are equal at the switch.
    """

    name: str = "post_local"
    switch: float = 0.5
    """Fraction of the budget after which J local steps are taken instead of one."""
    at_step: int | None = None
    """The switch as a number of local steps of each worker; null: `switch` counts."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.switch <= 1, f"local_steps.switch={self.switch}: a fraction of the budget, from 0 to 1, is needed")
        require(self.at_step is None or self.at_step >= 0, f"local_steps.at_step={self.at_step}: 0 or more steps are needed")

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), **({} if self.at_step is None else {"switch": None})}

    def check(self, J: int, steps: int) -> None:
        require(
            self.at_step is None or self.at_step < steps,
            f"local_steps.at_step={self.at_step}: the run ends after {steps} steps of each worker, before the switch; choose at most "
            f"{steps - 1}, a larger budget, or local_steps.switch=1 for J=1 throughout",
        )

    def steps(self, J: int, progress: float, taken: int, memory: Memory) -> int:
        return 1 if (progress < self.switch if self.at_step is None else taken < self.at_step) else J


@local_step_rules.register
@dataclass
class Linear(LocalSteps):
    """From `start` steps to J, linearly over the budget."""

    name: str = "linear"
    start: int = 1
    """Local steps in the first round."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.start >= 1, f"local_steps.start={self.start}: at least 1 step is needed")

    def check(self, J: int, steps: int) -> None:
        require(self.start <= J, f"local_steps.start={self.start}: must be at most J={J}, where the rule ends")

    def steps(self, J: int, progress: float, taken: int, memory: Memory) -> int:
        return self.start + int((J - self.start + 1) * progress)


@local_step_rules.register
@dataclass
class Doubling(Linear):
    """`start` steps, twice as many, and so on up to J, each for an equal part of the budget."""

    name: str = "doubling"

    def steps(self, J: int, progress: float, taken: int, memory: Memory) -> int:
        numbers = [self.start]
        while numbers[-1] * 2 <= J:
            numbers.append(numbers[-1] * 2)
        return numbers[int(progress * len(numbers))]
