"""The table at the end of a sweep."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fl_hydra.runs.outcome import Outcome


def print_outcomes(labels: list[str], outcomes: list[Outcome]) -> None:
    """Print one line for each point: its figures, or how it ended and why."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"{sum(outcome.status == 'finished' for outcome in outcomes)} of {len(outcomes)} points finished")
    for column in ("point", "status", "rounds", "samples", "train loss", "val acc %", "test acc %", "run"):
        table.add_column(column, justify="left" if column in ("point", "status", "run") else "right", overflow="fold")
    for label, outcome in zip(labels, outcomes, strict=True):
        metrics = outcome.metrics
        status = outcome.status if outcome.trained or outcome.status == "busy" else f"{outcome.status} before"
        table.add_row(
            Text(label),
            status,
            *(_number(metrics.get(name), scale, digits) for name, scale, digits in COLUMNS),
            outcome.folder.name,
        )
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)
    for label, outcome in zip(labels, outcomes, strict=True):
        if outcome.status != "finished":
            console.print(f"{label}: {outcome.status}: {outcome.reason}", markup=False, highlight=False, soft_wrap=True)


COLUMNS = (("round", 1, 0), ("samples", 1, 0), ("train/loss", 1, 4), ("val/acc", 100, 2), ("test/acc", 100, 2))


def _number(value: float | None, scale: int, digits: int) -> str:
    return "" if value is None else f"{value * scale:.{digits}f}"
