"""Result tables."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from fl_hydra.files import write_atomically
from fl_hydra.report.runs import Run, by_setting, mean_and_deviation

HEADER = ("setting", "seeds", "rounds", "samples", "val acc %", "test acc %", "test loss", "MB sent", "GFLOP", "status")


def _result(label: str, group: list[Run]) -> tuple[str, ...]:
    last = [run.rows[-1] for run in group]
    bad = [run.status for run in group if run.status != "finished"]
    return (
        label,
        str(len(group)),
        str(last[0]["round"]),
        str(last[0]["samples"]),
        mean_and_deviation([row["val/acc"] for row in last], 100),
        mean_and_deviation([row["test/acc"] for row in last], 100),
        mean_and_deviation([row["test/loss"] for row in last], digits=4),
        mean_and_deviation([(row["bytes_up"] + row["bytes_down"]) / 1e6 for row in last], digits=1),
        mean_and_deviation([row["flops"] / 1e9 for row in last], digits=1),
        f"{len(bad)} diverged" if bad else "finished",
    )


def write_results(runs: Sequence[Run], stem: Path) -> list[Path]:
    """The final model of every setting, mean ± standard deviation over seeds, as Markdown and CSV; also printed."""
    from rich.console import Console
    from rich.table import Table

    rows = [_result(label, group) for label, group in by_setting(runs)]
    table = Table(*HEADER)
    for row in rows:
        table.add_row(*row)
    Console(width=160).print(table)

    markdown = "\n".join("| " + " | ".join(row) + " |" for row in (HEADER, ("---",) * len(HEADER), *rows)) + "\n"
    buffer = io.StringIO()
    csv.writer(buffer).writerows([HEADER, *rows])
    written = []
    for suffix, text in ((".md", markdown), (".csv", buffer.getvalue())):
        path = stem.with_suffix(suffix)
        write_atomically(path, text.encode())
        written.append(path)
    return written


def print_runs(runs: Sequence[tuple[Path, Run | None]]) -> None:
    """Every run with its folder, whether it has ended, and its last test accuracy."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("setting", "seed", "status", "val acc %", "test acc %", "folder")
    for folder, run in runs:
        if run is None:
            table.add_row("", "", "not finished", "", "", Text(str(folder), overflow="fold"))
        else:
            figures = [mean_and_deviation([run.rows[-1][name]], 100) for name in ("val/acc", "test/acc")]
            table.add_row(run.label, str(run.config["seed"]), run.status, *figures, Text(str(folder), overflow="fold"))
    Console(width=160).print(table)
