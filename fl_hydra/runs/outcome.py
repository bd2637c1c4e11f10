"""How a run ended."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fl_hydra.training.evaluation import Metrics


@dataclass(frozen=True)
class Outcome:
    """How a run ended: `finished`, `diverged`, `paused`, `failed`, `busy` or `interrupted`, with the reason where it is not finished.

    metrics: the last row; of a run that has paused, the one that it paused at. trained: False where the result was there already.
    signal_number: of the signal that asked to stop, if one came; a run that was in its last round ends all the same.
    """

    status: str
    folder: Path
    metrics: Metrics
    reason: str = ""
    trained: bool = True
    signal_number: int = 0


class RunExit(BaseException):
    """Carries the outcome of a single run, or of the one that a sweep was stopped in, through Hydra, as :mod:`fl_hydra.exits` has it."""

    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome
