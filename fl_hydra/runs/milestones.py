"""When a run is evaluated, and where it pauses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fl_hydra.runs.folder import not_finite

if TYPE_CHECKING:
    from fl_hydra.training.evaluation import Metrics


def next_evaluation(samples: int, budget: int, points: int) -> int:
    """Samples at which the next row of metrics is due: the next of the points that divide the budget equally.

    Args:
        samples: done so far. budget: of the run. points: evaluations in it.
    """
    passed = samples * points // budget
    return min(budget, -(-(passed + 1) * budget // points))


def row_of_pause(rows: Sequence[Metrics], until: float | None, budget: int) -> Metrics | None:
    """The row that a run pauses at: the first that is due when the part `until` of its budget is done.

    None if it is not there, or if the run has diverged in it, which is an end; None for a run that is to pause nowhere.
    """
    if until is None:
        return None
    row = next((row for row in rows if (row["samples"] or 0) >= until * budget), None)
    return None if row is None or not_finite(row) else row
