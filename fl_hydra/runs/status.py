"""What has become of every section: done, running, failed, to do, and how long the rest takes; read from files alone."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from fl_hydra.errors import UserError
from fl_hydra.runs.failure import ERROR
from fl_hydra.runs.folder import run_folders
from fl_hydra.runs.reading import Run, read_run
from fl_hydra.runs.sections import section_runs, sections
from fl_hydra.runs.standing import in_words, is_written, part_kept, part_seen, seconds_per_sample


@dataclass
class Standing:
    """The runs of a section.

    parts: of the budgets of those that run now, and of those that were stopped, from 0 to 1. seconds_left: None where nothing tells it.
    """

    name: str
    finished: int = 0
    diverged: int = 0
    failed: int = 0
    damaged: int = 0
    running: list[float] = field(default_factory=list)
    stopped: list[float] = field(default_factory=list)
    to_do: int = 0
    seconds_left: float | None = None

    @property
    def runs(self) -> int:
        """All of them."""
        ended = self.finished + self.diverged + self.failed + self.damaged
        return ended + len(self.running) + len(self.stopped) + self.to_do


def standing(name: str, folders: Iterable[Path]) -> Standing:
    """How far some runs are. A run that was asked for and has no folder is to do.

    The time left is that of the missing samples at the pace of those that were trained; a run that has not begun has as many samples
    as the others, on average.
    """
    found = Standing(name)
    budgets: list[float] = []
    paces: list[float] = []
    left = 0.0
    not_begun = 0
    for folder in folders:
        run = read_run(folder)
        if run.config:
            budgets.append(run.config["budget"])
        if (pace := seconds_per_sample(folder)) is not None:
            paces.append(pace)
        if run.status in ("finished", "diverged", "damaged"):
            setattr(found, run.status, getattr(found, run.status) + 1)
            continue
        part = _part(run, found)
        if part is None or not run.config:
            not_begun += 1
        else:
            left += (1 - part) * run.config["budget"]
    left += not_begun * (statistics.fmean(budgets) if budgets else 0)
    if left and paces:
        found.seconds_left = left * statistics.fmean(paces)
    return found


def _part(run: Run, found: Standing) -> float | None:
    """The part of its budget that an unfinished run has done, after it was counted; None if it has not begun."""
    if run.status == "missing":
        found.to_do += 1
        return None
    if is_written(run.folder):
        found.running.append(part := part_seen(run.folder, run.config) if run.config else 0.0)
        return part
    if (run.folder / ERROR).exists():
        found.failed += 1
        return part_kept(run.folder, run.config) if run.config else None
    if not run.config:
        found.to_do += 1
        return None
    found.stopped.append(part := part_kept(run.folder, run.config))
    return part


def all_standings(outputs: Path) -> list[Standing]:
    """Of each section, of the runs of searches, and of those that belong to neither."""
    try:
        names = sections(outputs)
    except UserError:
        names = []
    members = {name: section_runs(name, outputs) for name in names}
    listed = {folder for folders in members.values() for folder in folders}
    others = [folder for folder in run_folders(outputs) if folder not in listed]
    trials = [folder for folder in others if read_run(folder).config.get("test") is False]
    found = [standing(name, folders) for name, folders in members.items()]
    if trials:
        # Those that were given up are not to be ended; which ones, and how many are still asked for, the studies know.
        found.append(replace(standing("(trials of searches)", trials), seconds_left=None))
    if rest := [folder for folder in others if folder not in trials]:
        found.append(standing("(in no section)", rest))
    return found


def print_status(outputs: Path) -> None:
    """A table of the sections."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=160)
    table = Table("section", "done", "running", "stopped", "failed", "to do", "left", title=str(outputs))
    for each in all_standings(outputs):
        done = f"{each.finished + each.diverged} of {each.runs}" + (f" ({each.diverged} diverged)" if each.diverged else "")
        failed = ", ".join(
            [*([str(each.failed)] if each.failed else []), *([f"{each.damaged} damaged"] if each.damaged else [])],
        )
        left = "" if each.seconds_left is None else in_words(each.seconds_left)
        cells = (done, _parts(each.running), _parts(each.stopped), failed, str(each.to_do or ""), left)
        table.add_row(Text(each.name), *cells)
    console.print(table)


def _parts(parts: Sequence[float]) -> str:
    """`2 (40 %, 70 %)`; of many, the least and the most."""
    if not parts:
        return ""
    shown = [f"{part:.0%}" for part in sorted(parts)]
    return f"{len(parts)} ({', '.join(shown) if len(shown) <= 3 else f'{shown[0]} to {shown[-1]}'})"
