"""What the user sees while a run trains: a live bar on a terminal, a line for each evaluation elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fl_hydra.runs.course import Course, current
from fl_hydra.training.experiment import Experiment

if TYPE_CHECKING:
    from rich.progress import Progress

    from fl_hydra.training.evaluation import Metrics


def headline(experiment: Experiment) -> str:
    """A run in one line."""
    e = experiment
    steps = "" if e.J is None else f" J={e.J}"
    who = "" if e.K == 1 else f" K={e.K}" + (f" ({e.m} a round)" if e.m != e.K else "")
    rounds = "" if e.rounds is None else f"{e.rounds} rounds, "
    skew = f" N_c={e.N_c}" if e.N_c is not None else f" {e.sharding.tag}" if e.sharding.tag else ""
    scheme = e.participation
    skew += f" gamma={e.gamma:g}" if e.gamma is not None else "" if scheme.name in ("all", "uniform") else f" {scheme.name}"
    skew += f" dropout={scheme.dropout:g}" if scheme.dropout else ""
    rule = "" if e.local_steps.name == "fixed" else f" {e.local_steps.option}"
    outer = "" if e.server.averages else f", server {e.server.option} lr {e.server.lr:g}"
    models = "|".join(model.name for model in e.models)
    return (
        f"{e.dataset.name} {e.algorithm.option}{who}{steps}{rule}{skew} batch {e.batch_size}, "
        f"{e.optimizer.option} lr {e.optimizer.lr:g}{outer}, {models}, {e.precision}, seed {e.seed}: {rounds}{e.budget} samples"
    )


PATIENCE, AGAIN = 5.0, 15.0
"""Seconds of silence until a line says what takes so long, and until the next one does."""


@contextmanager
def patience(doing: Callable[[], str], ended: threading.Event | None = None) -> Iterator[None]:
    """Within this, say on standard error what is being done where that takes long; until `ended` is set, if it is given."""
    ended = ended or threading.Event()

    def speak() -> None:
        wait = PATIENCE
        while not ended.wait(wait):
            print(f"note: {doing()}", file=sys.stderr, flush=True)
            wait = AGAIN

    speaker = threading.Thread(target=speak, daemon=True)
    speaker.start()
    try:
        yield
    finally:
        ended.set()
        speaker.join()


FIGURES = (
    ("train/loss", "loss", 1, 4),
    ("val/acc", "val", 100, 2),
    ("test/acc", "test", 100, 2),
    ("personal/val/acc", "personal val", 100, 2),
    ("personal/test/acc", "personal test", 100, 2),
)


def brief(*rows: Metrics) -> str:
    """The figures of a row that are worth a glance; from lowest to highest where there are several rows."""
    parts = []
    for name, label, scale, digits in FIGURES:
        values = [value * scale for row in rows if (value := row.get(name)) is not None]
        if values:
            low, high = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
            parts.append(f"{label} {low if low == high else f'{low} to {high}'}{'%' if scale == 100 else ''}")
    return ", ".join(parts) or "no figures yet"


class ConsoleReporter:
    """Reports to standard error: a bar with the last figures, rounds per second and time left, or plain lines.

    Of runs that train together, the part that is done and the time left are those of the one with the longest way to go.
    """

    def __init__(self, live: bool | None = None) -> None:
        self._live = sys.stderr.isatty() if live is None else live
        self._progress: Progress | None = None
        self._done = self._first_done = 0.0
        self._together = 1
        self._began = 0.0
        self._first_round = 0
        self._round = 0
        self._prepared = threading.Event()
        self._course: Course | None = None
        """Of the sweep that the runs belong to."""

    @contextmanager
    def preparing(self) -> Iterator[None]:
        """Within this, say so where it takes long until a run has started."""
        self._prepared.clear()
        with patience(lambda: "still preparing: checking the configuration, reading data, choosing an engine", self._prepared):
            yield

    def started(self, runs: Sequence[tuple[Experiment, Path, int, float]]) -> None:
        """Say what is trained and where, and from which round and fraction of the budget it continues."""
        self._prepared.set()
        if not runs:
            return
        course = self._course = current()
        if course is not None:
            where = course.started([(folder, experiment.budget, done) for experiment, folder, _, done in runs])
            label = course.label(runs[0][1]) if len(runs) == 1 else ""
            self._line(f"{where}: {label}" if label else where)
        if len(runs) > 1:
            self._line(f"{len(runs)} runs together:")
        for experiment, folder, round, _ in runs:
            label = course.label(folder) if course is not None and len(runs) > 1 else ""
            self._line(f"{label}: {headline(experiment)}" if label else headline(experiment))
            self._line(f"  {'resumed at round ' + str(round) + ' in ' if round else ''}{folder}")
        self._together, self._began = len(runs), time.monotonic()
        self._first_round = self._round = max(round for _, _, round, _ in runs)
        self._first_done = self._done = min(done for _, _, _, done in runs)
        if self._live:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

            self._progress = Progress(
                TextColumn("round {task.fields[round]}"),
                BarColumn(),
                TaskProgressColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[figures]}"),
                console=Console(stderr=True),
            )
            self._progress.add_task("", total=1.0, round=self._round, rate="", figures="")
            self._progress.update(self._progress.task_ids[0], completed=self._done)
            self._progress.start()

    def advanced(self, round: int, done: float) -> None:
        """A round is done, and so is this part of the budget."""
        self._round, self._done = round, done
        if self._course is not None:
            self._course.advanced(done)
        if self._progress is not None:
            self._progress.update(self._progress.task_ids[0], completed=done, round=round, rate=self._rate())

    def evaluated(self, rows: Sequence[Metrics]) -> None:
        """Rows of metrics are there, one for each run that had one due."""
        if self._progress is not None:
            self._progress.update(self._progress.task_ids[0], figures=brief(*rows))
        else:
            together = f" ({len(rows)} of {self._together} runs)" if self._together > 1 else ""
            self._line(f"  round {self._round}, {self._done:.0%}{together}: {brief(*rows)}, {self._rate()}, {self._left()} left")

    def warn(self, message: str) -> None:
        """Something that the user should know."""
        self._line(f"note: {message}")

    def ended(self) -> None:
        """Take the bar away."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _rounds_per_second(self) -> float:
        return (self._round - self._first_round) / max(1e-9, time.monotonic() - self._began)

    def _rate(self) -> str:
        return f"{self._rounds_per_second():.3g} rounds/s"

    def _left(self) -> str:
        rate = (self._done - self._first_done) / max(1e-9, time.monotonic() - self._began)
        seconds = round((1 - self._done) / max(1e-9, rate))
        return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"

    def _line(self, text: str) -> None:
        if self._progress is not None:
            self._progress.console.print(text, highlight=False, markup=False)
        else:
            try:
                print(text, file=sys.stderr, flush=True)
            except OSError:
                pass  # whoever read it is gone (a closed terminal, a pipe into head); the run goes on without a reader
