"""Points of the final models along an axis that figures mark and sentences mention."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fl_hydra.report.axes import Axis, axis, in_order
from fl_hydra.report.measures import Measure
from fl_hydra.report.results import Results, Setting, Statistic, narrowed
from fl_hydra.report.spec import FigureSpec

POINT = 1.0
"""A result matches the reference if it is at most this many percentage points below it."""

PARTS = (0.75, 0.5, 0.25)
"""Fractions of the settings that must reach the default target accuracy, tried in order until the accuracy is at least half the best."""


def reachable(settings: Sequence[Setting], accuracy: Measure) -> float | None:
    """A rounded accuracy, in %, that most settings reach with all seeds, or fewer if the others hardly learn; None if there is none."""
    peaks = []
    for setting in settings:
        if setting.finished:
            found = [[accuracy.of(row, run.config) for row in run.rows] for run in setting.finished]
            peaks.append(min(max((value for value in values if value is not None), default=0.0) for values in found))
    if not peaks:
        return None
    ranked = sorted(peaks, reverse=True)
    levels = [ranked[max(0, math.ceil(part * len(ranked)) - 1)] for part in PARTS]
    level = next((each for each in levels if each >= ranked[0] / 2), levels[-1])
    step = 5.0 if level >= 40 else 1.0 if level >= 5 else 0.1
    return math.floor(level / step + 1e-9) * step or None


def reference(settings: Sequence[Setting], x: Axis, of: Measure) -> tuple[Setting, Statistic] | None:
    """The best setting at the first value of the axis, such as the smallest batch; None if none has finished there."""
    values = in_order([x.of(setting.config) for setting in settings])
    first = [(setting, final) for setting in settings if x.of(setting.config) == values[0] and (final := setting.final(of))]
    return max(first, key=lambda each: each[1].mean) if first else None


def furthest(line: Sequence[Setting], settings: Sequence[Setting], x: Axis, of: Measure) -> Setting | None:
    """The setting of a line at the largest value of the axis that is at most :data:`POINT` below the reference of all settings."""
    known = reference(settings, x, of)
    kept = [setting for setting in line if known and (final := setting.final(of)) and final.mean >= known[1].mean - POINT]
    order = in_order([x.of(setting.config) for setting in line])
    return max(kept, key=lambda setting: order.index(x.of(setting.config))) if kept else None


def best_of(line: Sequence[Setting], by: Measure) -> Setting | None:
    """The setting that is best by a validation figure; of equals, the first."""
    judged = [(final.mean if by.better == "max" else -final.mean, setting) for setting in line if (final := setting.final(by))]
    return max(judged, key=lambda each: each[0])[1] if judged else None


def lines(results: Results, figure: FigureSpec) -> tuple[list[Axis], list[list[Setting]]]:
    """The axes that distinguish a figure's lines, and the settings of each line with more than one."""
    there = [each.name for each in results.axes]
    look = [axis(name) for name in (figure.facet, figure.color, figure.dash) if name and name in there]
    found: dict[object, list[Setting]] = {}
    for setting in narrowed(results.drawn, figure.where):
        found.setdefault(tuple(each.of(setting.config) for each in look), []).append(setting)
    x = axis(figure.x)
    return look, [line for line in found.values() if len({x.of(setting.config) for setting in line}) > 1]
