"""Rules that adapt the number of local steps to what was measured in training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from fl_hydra.errors import require
from fl_hydra.local_steps.base import LocalSteps, Measured, Memory, local_step_rules


@dataclass
class _Adaptive(LocalSteps):
    """Begins with `start` steps, or J if that is less, and remembers the current number."""

    start: int = 4
    """Local steps in the first rounds, or J if that is less."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.start >= 1, f"local_steps.start={self.start}: at least 1 step is needed")

    def steps(self, J: int, progress: float, taken: int, memory: Memory) -> int:
        return min(J, int(memory.get("steps", self.start)))


@local_step_rules.register
@dataclass
class Loss(_Adaptive):
    """Gossip-AGA's rule (Chen et al., ICML 2021, algorithm 2): H <- ceil(F_init / F H_init), F being the round's training loss.

    F_init is a running mean, F_init <- (F_init + F) / 2, over the first fraction `warmup` of the budget, while H stays H_init (`start`).
    """

    name: str = "loss"
    warmup: float = 0.05
    """Fraction of the budget in which J stays at `start` and the initial loss is averaged."""

    measures: ClassVar[frozenset[str]] = frozenset({"loss"})

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.warmup < 1, f"local_steps.warmup={self.warmup}: a fraction of the budget, at least 0 and below 1, is needed")

    def observe(self, measured: Measured, J: int, samples: int, progress: float, memory: Memory) -> None:
        if not math.isfinite(measured.loss):
            return
        if progress < self.warmup or "first" not in memory:
            memory["first"] = (memory.get("first", measured.loss) + measured.loss) / 2
        elif measured.loss > 0:
            memory["steps"] = min(J, math.ceil(memory["first"] / measured.loss * self.start))


@local_step_rules.register
@dataclass
class Drift(_Adaptive):
    """Compares the workers' dispersion with their common progress.

    r = drift / progress is 0 if all workers move alike, and 1 on average if independent noise alone moves their mean. A round with r
    below `low` is followed by one of twice as many steps, one with r above `high` by one of half as many: long strides while there is a
    way to go, frequent averages later on. The rule is ours.
    """

    name: str = "drift"
    low: float = 0.2
    """J is doubled after a round with drift / progress below this."""
    high: float = 0.6
    """J is halved after a round with drift / progress above this."""

    measures: ClassVar[frozenset[str]] = frozenset({"drift", "progress"})

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.low < self.high, f"local_steps.low={self.low} and high={self.high}: 0 < low < high is needed")

    def observe(self, measured: Measured, J: int, samples: int, progress: float, memory: Memory) -> None:
        ratio = measured.drift / measured.progress if measured.progress > 0 else math.nan
        now = min(J, int(memory.get("steps", self.start)))
        if ratio < self.low:
            memory["steps"] = min(J, 2 * now)
        elif ratio > self.high:
            memory["steps"] = max(1, now // 2)


@local_step_rules.register
@dataclass
class Noise(_Adaptive):
    """Makes a round as large as the largest useful batch: J <- B_noise / (samples of one step of all workers).

    B_noise is the gradient noise scale (McCandlish et al. 2018, equation 2.8), the batch size up to which averaging over more
    samples pays. A round averages over K J batch_size samples. The rule is ours.
    """

    name: str = "noise"

    measures: ClassVar[frozenset[str]] = frozenset({"noise"})

    def observe(self, measured: Measured, J: int, samples: int, progress: float, memory: Memory) -> None:
        if math.isfinite(measured.noise):
            memory["steps"] = max(1, min(J, round(measured.noise / samples)))
