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
    figures = [
        figure for figure in FIGURES if figure[1] in ALWAYS or any(outcome.metrics.get(figure[1]) is not None for outcome in outcomes)
    ]
    for column in ("point", "status", *(figure[0] for figure in figures), "run"):
        table.add_column(column, justify="left" if column in ("point", "status", "run") else "right", overflow="fold")
    for label, outcome in zip(labels, outcomes, strict=True):
        metrics = outcome.metrics
        status = outcome.status if outcome.trained or outcome.status == "busy" else f"{outcome.status} before"
        table.add_row(
            Text(label),
            status,
            *(_number(metrics.get(name), scale, digits) for _, name, scale, digits in figures),
            outcome.folder.name,
        )
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)
    for label, outcome in zip(labels, outcomes, strict=True):
        if outcome.status != "finished":
            console.print(f"{label}: {outcome.status}: {outcome.reason}", markup=False, highlight=False, soft_wrap=True)


FIGURES = (
    ("rounds", "round", 1, 0),
    ("samples", "samples", 1, 0),
    ("train loss", "train/loss", 1, 4),
    ("val acc %", "val/acc", 100, 2),
    ("test acc %", "test/acc", 100, 2),
    ("personal val acc %", "personal/val/acc", 100, 2),
    ("personal test acc %", "personal/test/acc", 100, 2),
)
"""Headers of columns, with the metric, its factor and its digits."""

ALWAYS = ("round", "samples", "train/loss", "val/acc", "test/acc")
"""Columns that are shown even if no run has them."""


def _number(value: float | None, scale: int, digits: int) -> str:
    return "" if value is None else f"{value * scale:.{digits}f}"
