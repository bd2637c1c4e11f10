"""A section's results: its settings, each with its runs over seeds, and their figures as numbers."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from fl_hydra.arrays import Reals
from fl_hydra.report.axes import Axis, Value, axis, in_order, varying
from fl_hydra.report.measures import Measure
from fl_hydra.report.runs import by_setting, state
from fl_hydra.runs.describing import planned_runs
from fl_hydra.runs.reading import Run, is_known, method_of


@dataclass(frozen=True)
class Statistic:
    """A figure over seeds. values: by seed. deviation: of the sample (n - 1); None for one seed."""

    values: tuple[float, ...]

    @property
    def n(self) -> int:
        """The number of seeds."""
        return len(self.values)

    @property
    def mean(self) -> float:
        """The mean over seeds."""
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """The standard deviation over seeds."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Curve:
    """A figure against another, over the seeds of a setting. x, mean, deviation: float64 [points]; deviation is None for one seed."""

    x: Reals
    mean: Reals
    deviation: Reals | None
    n: int


@dataclass(frozen=True)
class Setting:
    """Runs that differ only in the seed. label: in the field's notation. runs: all that were requested, including those in no mean."""

    label: str
    runs: Sequence[Run]

    @property
    def config(self) -> Mapping[str, Any]:
        """The resolved configuration of the first run."""
        return self.runs[0].config

    @property
    def finished(self) -> list[Run]:
        """The runs whose figures go into means, by seed."""
        return sorted((run for run in self.runs if run.finished), key=lambda run: run.config["seed"])

    @property
    def state(self) -> str:
        """`finished`, or how many have finished and the status of the others."""
        return state(list(self.runs))

    @property
    def method(self) -> str:
        """The method's title."""
        return method_of(self.config)[0]

    def value(self, name: str) -> Value:
        """The setting's value on an axis."""
        return axis(name).of(self.config)

    def final(self, measure: Measure) -> Statistic | None:
        """A figure of the final models over finished seeds; None if there are none, or one lacks the figure."""
        values = [measure.of(run.rows[-1], run.config) for run in self.finished]
        present = tuple(value for value in values if value is not None)
        return Statistic(present) if present and len(present) == len(values) else None

    def curve(self, x: Measure, y: Measure) -> Curve | None:
        """A figure against another, over finished seeds; None if there is nothing to draw.

        If rounds differ in length, runs are evaluated after different numbers of samples: all are interpolated at those of the first.
        Rows without the figure, such as a training loss before the first step, are left out.
        """
        lines = []
        for run in self.finished:
            points = [(row["samples"], x.of(row, run.config), y.of(row, run.config)) for row in run.rows]
            lines.append(np.array([point for point in points if None not in point], np.float64).reshape(-1, 3))
        if not lines or not all(len(line) for line in lines):
            return None
        samples = lines[0][:, 0]
        xs, ys = (np.array([np.interp(samples, line[:, 0], line[:, column]) for line in lines]) for column in (1, 2))
        return Curve(xs.mean(0), ys.mean(0), ys.std(0, ddof=1) if len(ys) > 1 else None, len(ys))

    def reached(self, x: Measure, target: float, y: Measure) -> Statistic | None:
        """The value of `x` at the first evaluation in which `y` is at least `target`, over finished seeds; None if one never reaches it."""
        found = []
        for run in self.finished:
            at = next((x.of(row, run.config) for row in run.rows if (y.of(row, run.config) or float("-inf")) >= target), None)
            if at is None:
                return None
            found.append(at)
        return Statistic(tuple(found)) if found else None


@dataclass(frozen=True)
class Results:
    """A section's settings, in the order of the request. settings: those with a known configuration."""

    name: str
    settings: Sequence[Setting]
    description: Mapping[str, Any] = field(default_factory=dict)
    """The sweep's description of the section: `command`, and `report`, the block of its file."""
    studies: Sequence[Mapping[str, Any]] = ()
    """Searches with the section's name, from their `study.json`."""
    unknown: int = 0
    """Requested runs without a known configuration, which are in no comparison."""
    others: Mapping[str, Sequence[Setting]] = field(default_factory=dict)
    """Settings of other sections, by their names, that a figure shows beside its own."""

    @classmethod
    def of(
        cls, name: str, runs: Sequence[Run], description: Mapping[str, Any] | None = None, studies: Sequence[Mapping[str, Any]] = ()
    ) -> Results:
        """Group a section's runs. Runs that have not begun belong to the setting that their sweep recorded."""
        planned = {name: config for name, config in planned_runs(description or {}).items() if is_known(config)}
        known = [run if run.config else replace(run, config=planned.get(run.folder.name, {})) for run in runs]
        settings = [Setting(label, group) for label, group in by_setting(known)]
        return cls(name, settings, dict(description or {}), studies, sum(not run.config for run in known))

    @property
    def drawn(self) -> list[Setting]:
        """The settings with at least one finished seed."""
        return [setting for setting in self.settings if setting.finished]

    @cached_property
    def axes(self) -> list[Axis]:
        """The axes on which the settings differ."""
        return varying([setting.config for setting in self.settings])


def narrowed(settings: Sequence[Setting], where: Mapping[str, Value]) -> list[Setting]:
    """Settings at these values of axes, given as values or as :meth:`fl_hydra.report.axes.Axis.text` writes them.

    If no setting has such a value, those at the first existing one.
    """
    kept = list(settings)
    for name, wanted in where.items():
        which = axis(name)
        there = in_order([which.of(setting.config) for setting in kept])
        accepted = [value for value in there if value == wanted or which.text(value) == str(wanted)] or there[:1]
        kept = [setting for setting in kept if which.of(setting.config) in accepted]
    return kept
