"""How a command ends: exceptions that pass through Hydra, which would announce an ordinary one as a failed job."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fl_hydra.runs.execution import Outcome


class RunEnded(BaseException):
    """Carries the outcome of a single run, or of the one that a sweep was stopped in."""

    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome


class SweepEnded(BaseException):
    """Carries the exit status of a sweep."""

    def __init__(self, status: int) -> None:
        self.status = status


class Mistake(BaseException):
    """Carries a mistake of the user."""
