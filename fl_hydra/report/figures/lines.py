"""Final models against an axis of settings: lines over numbers, dots over names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from fl_hydra.report.measures import Measure, measure, validation
from fl_hydra.report.results import Setting, Statistic

ACROSS = 4
"""Panels beside each other, at most."""

STRIP = 5.0
"""How far below an axis crosses are, and how far from each other, in points."""

MARGIN = 0.07
"""Beside the first and the last value of a logarithmic axis, as a part of what lies between them."""


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


Places = Mapping[tuple[int, int], tuple[int, int]]
"""Where panels are, as (row, column) of the figure by (row of measures, panel)."""


@dataclass(frozen=True)
class Across:
    """The x axis: where each value is, whether all are numbers, and whether these are spaced by their ratios."""

    at: dict[Value, float]
    numbers: bool
    log: bool

    @classmethod
    def of(cls, plan: Fitted, xs: Sequence[Value]) -> Across:
        """Numbers at their places, else values beside each other."""
        assert plan.x is not None
        numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in xs)
        at = {value: float(value) if numbers and value is not None else float(index) for index, value in enumerate(xs)}
        return cls(at, numbers, numbers and plan.x.log and min(at.values()) > 0)

    def dodge(self, number: int, of: int) -> float:
        """How far dots over names are beside their place, so that they do not hide each other."""
        return 0.0 if self.numbers else 0.6 * ((number + 0.5) / of - 0.5)


def draw(plan: Fitted, shown: Shown, table: CostTable, open_canvas: Any) -> Any:
    """The figure."""
    places, columns = _places(len(plan.panels), len(shown.measures))
    height = max(row for row, _ in places.values()) + 1
    width = COLUMN if columns == 1 else WIDE
    figure, axes = open_canvas(height, columns, (width, (1.8 if columns > 1 else 2.1) * height + 0.3))
    across = Across.of(plan, shown.xs)
    marks: set[str] = set()
    for (row, panel), place in places.items():
        marks |= _panel(axes[place], plan, shown, (row, panel), across, table)
    _say(plan, shown, axes, places, columns)
    _limit(plan, shown, axes, places, columns)
    room = (3.0 if columns == 1 else 6.0 / columns) / len(shown.xs)
    _finish(plan, shown, axes, set(places.values()), across, room, "none" in marks)
    handles, names = entries(plan)
    if len(plan.panels) == 1 and len(marks) == 1:  # what its rings or crosses are is said above it
        (mark,) = marks
        for place in places.values():
            axes[place].set_title(f"{'×' if mark == 'none' else '○'} {_words(mark, plan, shown)}", fontsize=SMALL)
        marks = set()
    alone = len(plan.panels) == 1 and plan.color is not None and plan.dash is None
    if across.numbers and alone and not marks and _name_ends(plan, shown, axes, places, across):
        return figure
    _explain({mark: _words(mark, plan, shown) for mark in sorted(marks)}, handles, names)
    legend(figure, handles, names, width)
    return figure


def _places(panels: int, rows: int) -> tuple[Places, int]:
    """Where panels are, and in how many columns: a lone panel's measures two beside each other, else the panels."""
    if panels == 1:
        columns = min(2, rows)
        return {(row, 0): divmod(row, columns) for row in range(rows)}, columns
    columns = min(ACROSS, panels)
    below = -(-panels // columns)
    return {(row, panel): (row * below + panel // columns, panel % columns) for row in range(rows) for panel in range(panels)}, columns


def _scale(shown: Shown, row: int) -> tuple[str, float, Sequence[float]]:
    """What is beside a row of panels, what its values are multiplied with, and these."""
    mine = [statistic.mean for (r, *_), statistic in shown.points.items() if r == row]
    return *suited(shown.measures[row].title, max(mine)), mine


def _panel(axis: Any, plan: Fitted, shown: Shown, place: tuple[int, int], across: Across, table: CostTable) -> set[str]:
    """Draw the series of a panel; which marks are in it."""
    assert plan.x is not None
    (row, panel), at = place, across.at
    title, scale, mine = _scale(shown, row)
    every = plan.panels[panel].series
    marks: set[str] = set()
    lost: list[tuple[float, str]] = []
    for number, series in enumerate(every):
        points = {value: shown.points.get((row, panel, number, value)) for value in shown.xs}
        dodge = across.dodge(number, len(every))
        _line(plan, axis, series, points, at, scale, dodge)
        lost += [(at[value], plan.colors[series.color]) for value in lacking(plan, shown, row, panel, number)]
        for setting in _marked(plan, series, shown.measures[row], table):
            value = plan.x.of(setting.config)
            if (found := points.get(value)) is not None:
                ring = {"markersize": 8.5, "fillstyle": "none", "color": plan.colors[series.color], "markeredgewidth": 1}
                axis.plot(at[value] + dodge, found.mean * scale, "o", clip_on=False, **ring)
                marks.add(plan.spec.mark)
    if min(mine) > 0 and max(mine) > 10 * min(mine) and "accuracy" not in title:
        logarithmic(axis, "y")
    _missing(axis, lost)
    return marks | ({"none"} if lost else set())


def lacking(plan: Fitted, shown: Shown, row: int, panel: int, number: int) -> list[Value]:
    """Where a series has no figure of settings that have begun."""
    assert plan.x is not None
    settings = plan.panels[panel].series[number].settings
    begun = {plan.x.of(setting.config) for setting in settings if any(run.status != "missing" for run in setting.runs)}
    return [value for value in shown.xs if value in begun and (row, panel, number, value) not in shown.points]


def _say(plan: Fitted, shown: Shown, axes: Any, places: Places, columns: int) -> None:
    """Titles of panels, how many seeds they show, and what is on their y axes."""
    alike = len({seeds(panel.settings) for panel in plan.panels}) == 1 and len(places) % columns == 0
    for (row, panel), place in places.items():
        axis = axes[place]
        if plan.panels[panel].heading:
            axis.set_title(pretty(plan.panels[panel].heading))
        if place[1] == columns - 1 or not alike:
            say_seeds(axis, plan.panels[panel].settings)
        if place[1] == 0 or len(plan.panels) == 1:
            axis.set_ylabel(_scale(shown, row)[0])


def _limit(plan: Fitted, shown: Shown, axes: Any, places: Places, columns: int) -> None:
    """The same y axis for the panels of a row, unless they are of other data or models."""
    if plan.apart:
        return
    for row in {row for row, _ in places}:
        own = [axes[place] for (r, _), place in places.items() if r == row]
        full = [axes[places[row, panel]] for panel in {panel for r, panel, *_ in shown.points if r == row}]
        low, high = min(axis.get_ylim()[0] for axis in full), max(axis.get_ylim()[1] for axis in full)
        for index, axis in enumerate(own):
            axis.set_ylim(low, high)
            if len(plan.panels) > 1 and index % columns:
                axis.tick_params(labelleft=False)


def _finish(plan: Fitted, shown: Shown, axes: Any, used: set[tuple[int, int]], across: Across, room: float, strip: bool) -> None:
    """The x axes. room: for a label, in inches. strip: marks are between an axis and its labels."""
    for row, column in np.ndindex(axes.shape):
        axis = axes[row, column]
        if (row, column) not in used:
            axis.remove()
            continue
        _ticks(plan, shown, axis, across, room)
        if strip:
            axis.tick_params(axis="x", pad=2 * STRIP)
        if any((under, column) in used for under in range(row + 1, axes.shape[0])):
            axis.tick_params(labelbottom=False)
        else:
            assert plan.x is not None
            axis.set_xlabel(pretty(plan.x.title))


def _ticks(plan: Fitted, shown: Shown, axis: Any, across: Across, room: float) -> None:
    """Limits and labels of an x axis."""
    assert plan.x is not None
    low, high = min(across.at.values()), max(across.at.values())
    if across.log:
        margin = (high / low) ** MARGIN
        axis.set_xlim(low / margin, high * margin)
        logarithmic(axis, "x")
    elif not across.numbers:
        axis.set_xlim(-0.5, len(shown.xs) - 0.5)
    if across.log and len(shown.xs) > 10:
        return
    labels = [plain(value) if across.numbers and isinstance(value, int | float) else pretty(plan.x.text(value)) for value in shown.xs]
    axis.set_xticks([across.at[value] for value in shown.xs], labels)
    axis.xaxis.set_tick_params(which="minor", bottom=False)
    axis.xaxis.minorticks_off()
    if max(map(len, labels)) * 0.065 > room:
        axis.tick_params(axis="x", labelrotation=35)
        for label in axis.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")


def _name_ends(plan: Fitted, shown: Shown, axes: Any, places: Places, across: Across) -> bool:
    """Names at the ends of lines in place of a legend; whether there is room in all panels."""
    assert plan.color is not None
    last = shown.xs[-1]
    ends: dict[Any, list[tuple[float, float, str, str]]] = {}
    for (row, _), place in places.items():
        scale = _scale(shown, row)[1]
        for number, series in enumerate(plan.panels[0].series):
            if (found := shown.points.get((row, 0, number, last))) is None:
                return False
            name, color = plan.color.label(series.color), plan.colors[series.color]
            ends.setdefault(axes[place], []).append((across.at[last], found.mean * scale, name, color))
    return at_ends(ends)


def _words(mark: str, plan: Fitted, shown: Shown) -> str:
    """What a mark is."""
    assert plan.x is not None
    if mark == "reference":
        return f"largest within {POINT:g} point of best at {plan.x.text(shown.xs[0])}"
    return {"best": "best by validation", "none": "no result"}[mark]


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


def _missing(axis: Any, lost: Sequence[tuple[float, str]]) -> None:
    """Crosses below the axis where settings have no result, side by side: there is no figure to draw."""
    from matplotlib.transforms import ScaledTranslation

    inch = axis.get_figure(root=True).dpi_scale_trans
    for x in {x for x, _ in lost}:
        colors = [color for each, color in lost if each == x]
        for index, color in enumerate(colors):
            beside = ScaledTranslation(STRIP * (index - (len(colors) - 1) / 2) / 72, -STRIP / 72, inch)
            place = axis.get_xaxis_transform() + beside
            axis.plot(x, 0, "x", transform=place, color=color, markersize=4, markeredgewidth=1.2, clip_on=False)


def _marked(plan: Fitted, series: Series, y: Measure, table: CostTable) -> list[Setting]:
    """The settings of a line that are marked."""
    assert plan.x is not None
    done = [setting for setting in series.settings if setting.final(y) is not None]
    if len(done) < 2 or not plan.spec.mark:
        return []
    best = plan.spec.mark == "best"
    marked = best_of(done, validation(y, table)) if best else furthest(done, plan.settings, plan.x, y)
    return [marked] if marked else []


def _explain(marks: dict[str, str], handles: list[Any], names: list[str]) -> None:
    from matplotlib.lines import Line2D

    for mark, words in marks.items():
        shape: dict[str, Any] = (
            {"marker": "x", "markersize": 4} if mark == "none" else {"marker": "o", "markersize": 8, "fillstyle": "none"}
        )
        handles.append(Line2D([], [], color="0.3", linestyle="none", **shape))
        names.append(words)
