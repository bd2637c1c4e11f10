"""Result tables."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from fl_hydra.files import write_atomically
from fl_hydra.report.cost import CostTable, Device, Ledger, computing_seconds, read_ledger, wall_clock, wire_bytes
from fl_hydra.report.runs import Run, by_setting, mean_and_deviation, mean_in_digits, not_in_means, state

HEADER = ("setting", "seeds", "rounds", "samples", "val acc %", "test acc %", "test loss", "MB sent", "GFLOP", "status")


MEANS = (
    "Figures are means ± standard deviations over the seeds that finished, as many as the column says; those of others, also of runs that "
    "diverged, are in none."
)


def _result(label: str, group: list[Run]) -> tuple[str, ...]:
    last = [run.rows[-1] for run in group if run.finished]
    if not last:
        return (label, "0", *[""] * (len(HEADER) - 3), state(group))
    return (
        label,
        str(len(last)),
        mean_in_digits([row["round"] for row in last]),
        mean_in_digits([row["samples"] for row in last]),
        mean_and_deviation([row["val/acc"] for row in last], 100),
        mean_and_deviation([row["test/acc"] for row in last], 100),
        mean_and_deviation([row["test/loss"] for row in last], digits=4),
        mean_and_deviation([(row["bytes_up"] + row["bytes_down"]) / 1e6 for row in last], digits=1),
        mean_and_deviation([row["flops"] / 1e9 for row in last], digits=1),
        state(group),
    )


def write_results(runs: Sequence[Run], stem: Path) -> list[Path]:
    """The final model of every setting, mean ± standard deviation over the seeds that finished, as Markdown and CSV; also printed.

    A setting of which no seed did has a row that says so.
    """
    lines = [f"- {line}" for line in not_in_means(runs)]
    note = "\n".join([MEANS, *(["", "In no mean:", "", *lines] if lines else [])])
    return _write(HEADER, [_result(label, group) for label, group in by_setting(runs)], stem, note)


def write_costs(runs: Sequence[Run], table: CostTable, stem: Path) -> list[Path]:
    """What every setting has computed and sent, and how long it would take, mean ± standard deviation over seeds, as Markdown and CSV.

    Of the seeds that finished. A setting of which none did, or some were made before runs counted all of it, has a row that says so. A
    device is named where there are several.
    """
    header = (
        "setting",
        "test acc %",
        "rounds",
        "messages",
        "payload MB/worker",
        "wire MB/worker",
        "samples",
        "GFLOP",
        "simulated s",
        *(f"{network.name} s" for network in table.networks),
        "status",
    )
    rows, left_out = [], []
    for label, group in by_setting(runs):
        last = [run.rows[-1] for run in group if run.finished]
        ledgers = [ledger for row in last if (ledger := read_ledger(row, group[0].config)) is not None]
        if not last or len(ledgers) < len(last):
            left_out.append(label)
            status = "made before runs counted all of it" if last else state(group)
            rows.append((label, *[""] * (len(header) - 2), status))
            continue
        accuracy = mean_and_deviation([row["test/acc"] for row in last], 100)
        for device in table.devices:
            name = f"{label}, {device.name}" if len(table.devices) > 1 else label
            rows.append((name, accuracy, *_costs(ledgers, table, device), state(group)))
    if left_out:
        print(f"no costs (no seed finished, or made before runs counted all of it): {'; '.join(left_out)}")
    if len(left_out) == len(rows):
        return []
    links = ", ".join(f"{n.name} {n.latency * 1e3:g} ms + {n.bandwidth / 1e9:g} Gb/s" for n in table.networks)
    note = (
        "payload: what workers and server sent, by the number of workers; wire: the same with every message of the collective; MB: 10^6 "
        f"bytes. simulated: without a network; NAME s: wall-clock on it. Averages of workers: {table.collective}. Networks: {links}. "
        + MEANS
    )
    return _write(header, rows, stem, note, shown=(0, 5, *range(8, len(header))))


def _costs(ledgers: Sequence[Ledger], table: CostTable, device: Device) -> list[str]:
    figures: list[list[float]] = [
        [ledger.rounds for ledger in ledgers],
        [ledger.messages for ledger in ledgers],
        [ledger.payload / ledger.workers / 1e6 for ledger in ledgers],
        [wire_bytes(ledger, table.collective) / ledger.workers / 1e6 for ledger in ledgers],
        [ledger.samples for ledger in ledgers],
        [ledger.flops / 1e9 for ledger in ledgers],
        [computing_seconds(ledger, device) + ledger.delay for ledger in ledgers],
        *([wall_clock(ledger, network, device, table.collective) for ledger in ledgers] for network in table.networks),
    ]
    return [mean_in_digits(values) for values in figures]


def _write(
    header: tuple[str, ...], rows: Sequence[tuple[str, ...]], stem: Path, note: str = "", shown: Sequence[int] | None = None
) -> list[Path]:
    """A table as Markdown, with a note below it, and as CSV; on the screen some of its columns, or all. The files' paths."""
    from rich.console import Console
    from rich.table import Table

    columns = range(len(header)) if shown is None else shown
    table = Table(*(header[column] for column in columns))
    for row in rows:
        table.add_row(*(row[column] for column in columns))
    Console(width=160).print(table)

    markdown = "\n".join("| " + " | ".join(row) + " |" for row in (header, ("---",) * len(header), *rows)) + "\n"
    if note:
        markdown += f"\n{note}\n"
    buffer = io.StringIO()
    csv.writer(buffer).writerows([header, *rows])
    written = []
    for suffix, text in ((".md", markdown), (".csv", buffer.getvalue())):
        path = stem.with_suffix(suffix)
        write_atomically(path, text.encode())
        written.append(path)
    return written
