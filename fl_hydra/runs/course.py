"""Progress of a sweep, as `7 of 45, 3 h 10 min left`, from the samples that it has trained so far."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from fl_hydra.runs.standing import in_words


class Course:
    """A sweep's progress, which the reporters of its runs update and print.

    Args:
        total: distinct runs of the sweep.
        ended: of these, how many had ended before.
    """

    def __init__(self, total: int, ended: int) -> None:
        self.said = ""
        """Replaces the number of the run if not all runs are requested at once."""
        self.further = 0.0
        """Samples of runs that have not been requested yet."""
        self.at_most = False
        """Whether some of what is left may be pruned."""
        self._total, self._ended = total, ended
        self._labels: dict[Path, str] = {}
        self._left: dict[Path, float] = {}
        self._now: dict[Path, float] = {}
        """The samples of each run that trains now."""
        self._done = 0.0
        """The fraction of the budget that the least advanced of them has done."""
        self._over: set[Path] = set()
        self._began: float | None = None
        """When the first run began to train; loading programs and data before that happens once."""
        self._trained = 0.0

    def ask(self, runs: Mapping[Path, tuple[str, float]]) -> None:
        """Runs are to be trained; those before them are over, or pause.

        Args:
            runs: by folder, what sets each apart, and the samples that it has before it.
        """
        self._close()
        for folder, (label, left) in runs.items():
            self._labels[folder], self._left[folder] = label, left

    def label(self, folder: Path) -> str:
        """What sets a run apart from the others of the sweep."""
        return self._labels.get(folder, "")

    def started(self, runs: Sequence[tuple[Path, float, float]]) -> str:
        """Runs begin to train, and those before them are over; the line that says where the sweep is.

        Args:
            runs: of each the folder, the samples of its budget, and the part of it that is done.
        """
        self._close()
        self._began = time.monotonic() if self._began is None else self._began
        first = self._ended + len(self._over) + 1
        for folder, budget, done in runs:
            self._now[folder] = budget
            self._left[folder] = min(self._left.get(folder, budget), budget * (1 - done))
        self._done = min(done for _, _, done in runs)
        last = first + len(runs) - 1
        where = self.said or f"{first if first == last else f'{first} to {last}'} of {self._total}"
        return f"{where}{self._time_left()}"

    def advanced(self, done: float) -> None:
        """The fraction of the budget that the least advanced run has done by now."""
        for folder, budget in self._now.items():  # all of them train as many samples in a round
            trained = min(self._left[folder], budget * max(0.0, done - self._done))
            self._trained += trained
            self._left[folder] -= trained
        self._done = max(self._done, done)

    def _close(self) -> None:
        for folder in self._now:
            self._left[folder] = 0.0
        self._over |= set(self._now)
        self._now = {}

    def _time_left(self) -> str:
        if not self._trained or self._began is None:
            return ""
        seconds = (sum(self._left.values()) + self.further) / self._trained * (time.monotonic() - self._began)
        return f", {'at most ' if self.at_most else ''}{in_words(seconds)} left"


_current: Course | None = None


def current() -> Course | None:
    """The course of the sweep that this process trains, if it does."""
    return _current


@contextmanager
def on(course: Course) -> Iterator[None]:
    """A context in which runs belong to a sweep."""
    global _current
    before, _current = _current, course
    try:
        yield
    finally:
        _current = before
