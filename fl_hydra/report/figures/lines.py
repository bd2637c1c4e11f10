"""Final models against an axis of settings: lines over numbers, dots over names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fl_hydra.report.axes import Value
from fl_hydra.report.cost import CostTable
from fl_hydra.report.figures.fitting import Fitted, Series
from fl_hydra.report.figures.legends import at_ends, entries, legend, pretty, say_seeds, seeds
from fl_hydra.report.figures.scales import logarithmic, plain, suited
from fl_hydra.report.figures.style import COLUMN, SMALL, WIDE
from fl_hydra.report.marks import POINT, best_of, furthest
from fl_hydra.report.measures import Measure, measure
from fl_hydra.report.results import Setting, Statistic

ACROSS = 4
"""Panels beside each other, at most."""


@dataclass(frozen=True)
class Shown:
    """What is drawn: a row of panels for each measure, the statistics by (row, panel, series, x)."""

    measures: tuple[Measure, ...]
    xs: tuple[Value, ...]
    points: dict[tuple[int, int, int, Value], Statistic]


def read(plan: Fitted, table: CostTable) -> Shown | None:
    """The numbers, without measures that say nothing; None where none is left."""
    assert plan.x is not None
    xs = tuple(plan.values(plan.x))
    kept: list[Measure] = []
    points: dict[tuple[int, int, int, Value], Statistic] = {}
    for each in (measure(name, table) for name in plan.spec.y):
        found = {
            (len(kept), index, number, plan.x.of(setting.config)): statistic
            for index, panel in enumerate(plan.panels)
            for number, series in enumerate(panel.series)
            for setting in series.settings
            if (statistic := setting.final(each)) is not None
        }
        if len({place[3] for place in found}) > 1 and len({statistic.mean for statistic in found.values()}) > 1:
            points |= found
            kept.append(each)
    return Shown(tuple(kept), xs, points) if kept else None


def draw(plan: Fitted, shown: Shown, table: CostTable, open_canvas: Any) -> Any:
    """The figure."""
    assert plan.x is not None
    panels, rows = len(plan.panels), len(shown.measures)
    columns = min(ACROSS, panels) if panels > 1 else min(2, rows)
    places = {
        (row, panel): (row * -(-panels // columns) + panel // columns, panel % columns) if panels > 1 else divmod(row, columns)
        for row in range(rows)
        for panel in range(panels)
    }
    height = max(row for row, _ in places.values()) + 1
    width = COLUMN if columns == 1 else WIDE
    figure, axes = open_canvas(height, columns, (width, (1.8 if columns > 1 else 2.1) * height + 0.3))
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in shown.xs)
    at = {value: float(value) if numbers and value is not None else float(index) for index, value in enumerate(shown.xs)}
    steps = sorted(at.values())
    logx = numbers and plan.x.log and steps[0] > 0
    marks: set[str] = set()
    alike = len({seeds(panel.settings) for panel in plan.panels}) == 1 and len(places) % columns == 0
    for (row, panel), place in places.items():
        axis = axes[place]
        mine = [statistic.mean for (r, *_), statistic in shown.points.items() if r == row]
        title, scale = suited(shown.measures[row].title, max(mine))
        for number, series in enumerate(plan.panels[panel].series):
            points = {value: shown.points.get((row, panel, number, value)) for value in shown.xs}
            asked = {plan.x.of(setting.config) for setting in series.settings}
            _line(plan, axis, series, points, at, scale, _dodge(number, len(plan.panels[panel].series), numbers))
            marks |= _missing(plan, axis, series, [at[value] for value in shown.xs if value in asked and points[value] is None])
            for setting in _marked(plan, series, shown.measures[row], table):
                value = plan.x.of(setting.config)
                found = points.get(value)
                if found is not None:
                    x = at[value] + _dodge(number, len(plan.panels[panel].series), numbers)
                    axis.plot(
                        x,
                        found.mean * scale,
                        "o",
                        markersize=8.5,
                        fillstyle="none",
                        color=plan.colors[series.color],
                        markeredgewidth=1,
                        clip_on=False,
                    )
                    marks.add(plan.spec.mark)
        if plan.panels[panel].title:
            axis.set_title(pretty(plan.panels[panel].title))
        if place[1] == columns - 1 or not alike:
            say_seeds(axis, plan.panels[panel].settings)
        if place[1] == 0 or panels == 1:
            axis.set_ylabel(title)
        if mine and min(mine) > 0 and max(mine) > 10 * min(mine) and "accuracy" not in title:
            logarithmic(axis, "y")
    for row in range(rows):
        own = [axes[place] for (r, _), place in places.items() if r == row]
        low, high = min(axis.get_ylim()[0] for axis in own), max(axis.get_ylim()[1] for axis in own)
        for axis in own:
            axis.set_ylim(low, high)
            if axis is not own[0] and panels > 1 and own.index(axis) % columns:
                axis.tick_params(labelleft=False)
    used = set(places.values())
    for row, column in np.ndindex(axes.shape):
        axis = axes[row, column]
        if (row, column) not in used:
            axis.remove()
            continue
        if logx:
            axis.set_xlim(steps[0] / 1.25, steps[-1] * 1.25)
            logarithmic(axis, "x")
        room = (3.0 if columns == 1 else 6.0 / columns) / len(shown.xs)
        if not logx or len(shown.xs) <= 10:
            labels = [plain(value) if numbers and isinstance(value, int | float) else pretty(plan.x.text(value)) for value in shown.xs]
            axis.set_xticks([at[value] for value in shown.xs], labels)
            axis.minorticks_off()
            if max(map(len, labels)) * 0.065 > room:
                axis.tick_params(axis="x", labelrotation=35)
                for label in axis.get_xticklabels():
                    label.set(ha="right", rotation_mode="anchor")
        if not numbers:
            axis.set_xlim(-0.5, len(shown.xs) - 0.5)
        below = any((under, column) in used for under in range(row + 1, axes.shape[0]))
        if not below:
            axis.set_xlabel(pretty(plan.x.title))
        else:
            axis.tick_params(labelbottom=False)
    handles, names = entries(plan)
    if panels == 1 and len(marks) == 1:  # what its rings or crosses are is said above it
        (mark,) = marks
        for place in places.values():
            axes[place].set_title(f"{'×' if mark == 'none' else '○'} {_words(mark, plan, shown)}", fontsize=SMALL)
        marks = set()
    if numbers and panels == 1 and rows == 1 and plan.color is not None and plan.dash is None and not marks:
        last = shown.xs[-1]
        ends = [
            (at[last], found.mean, plan.color.label(series.color), plan.colors[series.color])
            for number, series in enumerate(plan.panels[0].series)
            if (found := shown.points.get((0, 0, number, last))) is not None
        ]
        if len(ends) == len(plan.panels[0].series) and max(len(name) for _, _, name, _ in ends) <= 16 and at_ends(axes[0, 0], ends):
            return figure
    _explain({mark: _words(mark, plan, shown) for mark in sorted(marks)}, handles, names)
    legend(figure, handles, names, width)
    return figure


def _words(mark: str, plan: Fitted, shown: Shown) -> str:
    """What a mark is."""
    assert plan.x is not None
    if mark == "reference":
        return f"largest {plan.x.title} within {POINT:g} point of the best at {plan.x.text(shown.xs[0])}"
    return {"best": "best by validation", "none": "no result"}[mark]


def _dodge(number: int, of: int, numbers: bool) -> float:
    """How far dots over names are beside their place, so that they do not hide each other."""
    return 0.0 if numbers else 0.6 * ((number + 0.5) / of - 0.5)


def _line(
    plan: Fitted,
    axis: Any,
    series: Series,
    points: dict[Value, Statistic | None],
    at: dict[Value, float],
    scale: float,
    dodge: float,
) -> None:
    """A line with a band over numbers, with gaps where there is nothing; over names, or beside what is absent, dots with error bars."""
    color, marker, dash = plan.colors[series.color], plan.markers[series.color], plan.dashes[series.dash]
    ordinal = {value for value in points if isinstance(value, int | float) and not isinstance(value, bool)}
    joined = [value for value in points if value in ordinal]
    if joined:
        x = np.array([at[value] for value in joined])
        y = np.array([np.nan if (s := points[value]) is None else s.mean * scale for value in joined])
        d = np.array([np.nan if (s := points[value]) is None or s.deviation is None else s.deviation * scale for value in joined])
        axis.plot(x, y, color=color, marker=marker, linestyle=dash)
        if np.isfinite(d).any():
            axis.fill_between(x, y - d, y + d, color=color, alpha=0.2, linewidth=0)
    for value in points:
        found = points[value]
        if value in ordinal or found is None:
            continue
        error = None if found.deviation is None else found.deviation * scale
        face = color if series.dash is None or dash == "-" else "white"
        axis.errorbar(
            at[value] + (0 if ordinal else dodge), found.mean * scale, error, color=color, marker=marker, capsize=2, markersize=4.5,
            markerfacecolor=face, linestyle="none", elinewidth=0.9,
        )  # fmt: skip


def _missing(plan: Fitted, axis: Any, series: Series, xs: Sequence[float]) -> set[str]:
    """Crosses at the lower edge where a setting has no result: it is no figure."""
    for x in xs:
        axis.plot(x, 0.03, "x", transform=axis.get_xaxis_transform(), color=plan.colors[series.color], markersize=4, clip_on=False)
    return {"none"} if xs else set()


def _marked(plan: Fitted, series: Series, y: Measure, table: CostTable) -> list[Setting]:
    """The settings of a line that are marked."""
    assert plan.x is not None
    done = [setting for setting in series.settings if setting.final(y) is not None]
    if len(done) < 2 or not plan.spec.mark:
        return []
    if plan.spec.mark == "best":
        chooser = measure("val/loss" if y.name.endswith("loss") else "val/acc", table)
        marked = best_of(done, chooser)
    else:
        marked = furthest(done, plan.settings, plan.x, y)
    return [marked] if marked else []


def _explain(marks: dict[str, str], handles: list[Any], names: list[str]) -> None:
    from matplotlib.lines import Line2D

    for mark, words in marks.items():
        shape: dict[str, Any] = (
            {"marker": "x", "markersize": 4} if mark == "none" else {"marker": "o", "markersize": 8, "fillstyle": "none"}
        )
        handles.append(Line2D([], [], color="0.3", linestyle="none", **shape))
        names.append(words)
