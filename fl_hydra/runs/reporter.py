"""Reporting the progress of runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from fl_hydra.training.experiment import Experiment

if TYPE_CHECKING:
    from fl_hydra.training.evaluation import Metrics


class Reporter(Protocol):
    """Receives the progress of a run, or of several that train together."""

    def started(self, runs: Sequence[tuple[Experiment, Path, int, float]]) -> None:
        """Training begins or continues: each run's configuration, folder, rounds so far and the part of its budget that is done."""

    def advanced(self, round: int, done: float) -> None:
        """A round has ended: the most rounds of a run, and the least part of a budget that is done."""

    def evaluated(self, rows: Sequence[Metrics]) -> None:
        """Some runs have a new row of metrics."""

    def warn(self, message: str) -> None:
        """Something that the user should know, in a line."""

    def ended(self) -> None:
        """Nothing is being trained now."""
