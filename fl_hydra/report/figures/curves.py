"""Curves: figures of every evaluation against rounds, samples, bytes or time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fl_hydra.report.cost import CostTable
from fl_hydra.report.figures.fitting import DASHES, Fitted, Series
from fl_hydra.report.figures.legends import at_ends, entries, legend, pretty, say_seeds, seeds
from fl_hydra.report.figures.scales import COUNTED, MUCH, logarithmic, plain, suited, whole
from fl_hydra.report.figures.style import COLUMN, WIDE
from fl_hydra.report.measures import Measure, measure
from fl_hydra.report.results import Curve

PARTS = {"test": "test", "train": "training", "val": "validation"}

ACROSS = 4
"""Panels beside each other, at most."""


@dataclass(frozen=True)
class Row:
    """What the panels of one y axis show: measures, of which the first is solid, others in dashes."""

    title: str
    measures: tuple[Measure, ...]


@dataclass(frozen=True)
class Shown:
    """A figure's numbers: panels by row, and their lines."""

    x: Measure
    rows: tuple[Row, ...]
    lines: dict[tuple[int, int], list[tuple[Series, Measure, Curve]]]
    stopped: tuple[tuple[Series, str], ...] = ()
    """Series whose runs have not finished, and what became of these."""


def read(plan: Fitted, table: CostTable) -> Shown | None:
    """The numbers of a figure, without rows that say nothing; None where none is left."""
    x = measure(plan.spec.x, table)
    rows: list[Row] = []
    lines: dict[tuple[int, int], list[tuple[Series, Measure, Curve]]] = {}
    for row in _rows(plan, table):
        found = {
            index: [
                (series, each, curve)
                for series in panel.series
                for each in row.measures
                if (curve := series.settings[0].curve(x, each)) is not None
            ]
            for index, panel in enumerate(plan.panels)
        }
        if says([curve for of_panel in found.values() for _, _, curve in of_panel]):
            lines |= {(len(rows), index): of_panel for index, of_panel in found.items()}
            rows.append(row)
    stopped = tuple(
        (each, state) for panel in plan.panels for each in panel.series if any(each.settings[0].finished) and (state := _stopped(each))
    )
    return Shown(x, tuple(rows), lines, stopped) if rows else None


def says(curves: Sequence[Curve]) -> bool:
    """Whether curves say anything: not that there is one point, that nothing ever changes, or that all are the same."""
    drawn = [curve for curve in curves if np.isfinite(curve.mean).any()]
    if not drawn or (len(drawn) == 1 and len(drawn[0].x) < 2):
        return False
    values = np.concatenate([curve.mean for curve in drawn])
    if np.nanmax(values) - np.nanmin(values) <= 1e-12 * max(1.0, float(np.nanmax(np.abs(values)))):
        return False
    first = drawn[0]
    return len(drawn) == 1 or not all(_same(first, curve) for curve in drawn[1:])


def _same(one: Curve, other: Curve) -> bool:
    return len(one.x) == len(other.x) and np.allclose(one.x, other.x) and np.allclose(one.mean, other.mean, rtol=1e-9, atol=0)


def signature(shown: Shown, row: int) -> tuple[Any, ...]:
    """What the panels of a row look like, whatever the unit of x: the same for two of which one repeats the other."""
    lines = [line for (at, _), of_panel in sorted(shown.lines.items()) if at == row for line in of_panel]
    largest = max((float(curve.x.max()) for _, _, curve in lines), default=0.0) or 1.0
    return tuple((each.name, *(round(float(v), 6) for v in (*(curve.x / largest), *curve.mean))) for _, each, curve in lines)


def _rows(plan: Fitted, table: CostTable) -> list[Row]:
    """Training and test figures of the same kind share a panel where there is room for both and their dashes."""
    found = [measure(name, table) for name in plan.spec.y]
    if plan.dash is not None or max(len(panel.series) for panel in plan.panels) > 4:
        return [Row(each.title, (each,)) for each in found]
    kinds: dict[str, list[Measure]] = {}
    for each in found:
        whose, part, kind = _parted(each.name)
        kinds.setdefault(whose + kind if part in PARTS else each.name, []).append(each)
    titles = {"loss": "loss", "acc": "accuracy, %", "personal/loss": "personal loss", "personal/acc": "personal accuracy, %"}
    rows = []
    for kind, group in kinds.items():
        group.sort(key=lambda each: list(PARTS).index(_parted(each.name)[1]) if len(group) > 1 else 0)
        rows.append(Row(titles.get(kind, kind) if len(group) > 1 else group[0].title, tuple(group)))
    return rows


def _parted(name: str) -> tuple[str, str, str]:
    """`personal/`, or nothing; the set; and the figure of it."""
    whose = "personal/" if name.startswith("personal/") else ""
    part, _, kind = name.removeprefix(whose).partition("/")
    return whose, part, kind


def draw(plan: Fitted, shown: Shown, open_canvas: Any) -> Any:
    """The figure; `open_canvas(rows, columns, size)` is :func:`fl_hydra.report.figures.style.canvas`, entered."""
    places, columns = _places(len(plan.panels), len(shown.rows))
    height = max(row for row, _ in places.values()) + 1
    width = COLUMN if columns == 1 else WIDE
    # Of several panels, one above the other or beside each other, the legend is above them.
    each = 1.75 if columns > 1 else 1.6 if height > 1 else 2.1
    figure, axes = open_canvas(height, columns, (width, each * height + 0.3))
    curves = [curve for of_panel in shown.lines.values() for _, _, curve in of_panel]
    title, scale = suited(shown.x.title, max((float(curve.x.max()) for curve in curves), default=0.0))
    lasts = [float(curve.x[-1]) for curve in curves if curve.x[-1] > 0]
    logx = bool(lasts) and max(lasts) > MUCH * min(lasts)
    marked, parts = any(len(panel.series) > 1 for panel in plan.panels), _parts(shown)
    silent = False
    for (row, panel), place in places.items():
        for series, one, curve in shown.lines[row, panel]:
            look = _look(plan, series, shown.rows[row].measures.index(one), marked, bool(parts))
            if series is plan.panels[panel].reference:
                look = replace(look, wide=True)
            silent |= _line(axes[place], look, one, curve, scale, logx)
    _say(plan, shown, axes, places, columns)
    _share_rows(plan, shown, axes, places)
    _finish(axes, set(places.values()), title, shown.x.name in COUNTED, logx, plan.apart)
    alone = len(plan.panels) == 1 and plan.color is not None and plan.dash is None and not (parts or silent or shown.stopped)
    if alone and _name_ends(plan, shown, axes, places, scale):
        return figure
    handles, names = entries(plan, marked, parts)
    _explain(plan, shown, silent, handles, names)
    legend(figure, handles, names, width)
    return figure


Places = Mapping[tuple[int, int], tuple[int, int]]
"""Where the panels of each row of measures are, as (row, column) of the figure by (row of measures, panel)."""


def _places(panels: int, rows: int) -> tuple[Places, int]:
    """Where panels are, and in how many columns: a lone panel's measures beside each other, else the panels."""
    if panels == 1:
        columns = 1 if rows <= 2 else min(ACROSS, rows)
        return {(row, 0): divmod(row, columns) for row in range(rows)}, columns
    columns = min(ACROSS, panels)
    below = -(-panels // columns)
    return {(row, panel): (row * below + panel // columns, panel % columns) for row in range(rows) for panel in range(panels)}, columns


def _say(plan: Fitted, shown: Shown, axes: Any, places: Places, columns: int) -> None:
    """Titles of panels, how many seeds they show, and what is on their y axes."""
    panels = len(plan.panels)
    alike = len({seeds(panel.settings) for panel in plan.panels}) == 1 and panels % columns == 0
    for (row, panel), place in places.items():
        axis = axes[place]
        if plan.panels[panel].heading and (row == 0 or panels > columns):
            axis.set_title(pretty(plan.panels[panel].heading))
        if row == 0 and (place[1] == columns - 1 or not alike):
            say_seeds(axis, plan.panels[panel].settings)
        if place[1] == 0 or panels == 1:
            axis.set_ylabel(shown.rows[row].title)


def _share_rows(plan: Fitted, shown: Shown, axes: Any, places: Places) -> None:
    """The same y axis for the panels of a row that show something, unless they are of other data or models."""
    for row in range(len(shown.rows)):
        mine = {panel: axes[place] for (at, panel), place in places.items() if at == row and shown.lines[row, panel]}
        for group in [{panel: axis} for panel, axis in mine.items()] if plan.apart else [mine]:
            _share(group, shown, row)
        for (at, _), place in places.items():
            if at == row and place[1] and len(plan.panels) > 1 and not plan.apart:
                axes[place].tick_params(labelleft=False)


def _name_ends(plan: Fitted, shown: Shown, axes: Any, places: Places, scale: float) -> bool:
    """Names at the ends of lines in place of a legend; whether there is room in all panels."""
    assert plan.color is not None
    ends = {
        axes[place]: [
            (float(curve.x[-1]) * scale, float(curve.mean[-1]), plan.color.label(series.color), plan.colors[series.color])
            for series, _, curve in shown.lines[row, 0]
        ]
        for (row, _), place in places.items()
    }
    return at_ends(ends)


def _explain(plan: Fitted, shown: Shown, silent: bool, handles: list[Any], names: list[str]) -> None:
    """Entries of a legend for what is no line of a setting alone."""
    from matplotlib.lines import Line2D

    if silent:
        handles.append(Line2D([], [], color="0.3", linestyle=(0, (1, 3))))
        names.append("no communication")
    for color, state in dict.fromkeys((series.color, state) for series, state in shown.stopped):
        handles.append(Line2D([], [], color=plan.colors[color], linestyle="none", marker="x", markersize=6, markeredgewidth=1.4))
        names.append(f"{state} here")


def _parts(shown: Shown) -> list[tuple[str, Any]]:
    most = max((row.measures for row in shown.rows), key=len)
    if len(most) < 2:
        return []
    return [(PARTS[_parted(each.name)[1]], DASHES[index]) for index, each in enumerate(most)]


@dataclass(frozen=True)
class Look:
    """How a line is drawn. first: which of every how many points has the first marker. stopped: it ends where its run was broken off.

    wide: to be seen below a line that is the same.
    """

    color: str
    style: Any
    marker: str | None
    first: int
    alone: str
    stopped: bool
    wide: bool = False


def _look(plan: Fitted, series: Series, part: int, marked: bool, parts: bool) -> Look:
    marker = plan.markers[series.color]
    style = DASHES[part] if parts else plan.dashes[series.dash]
    order = list(plan.colors).index(series.color)
    return Look(plan.colors[series.color], style, marker if marked and part == 0 else None, order, marker, bool(_stopped(series)))


def _line(axis: Any, look: Look, measured: Measure, curve: Curve, scale: float, logx: bool) -> bool:
    """Draw one, J as steps, for it holds until it is chosen anew; whether it is a level for who sends nothing."""
    if not curve.x.any():
        axis.axhline(curve.mean[-1], color=look.color, linestyle=(0, (1, 3)))
        return True
    x, y = curve.x * scale, curve.mean
    deviation = curve.deviation
    if logx:
        kept = x > 0
        x, y, deviation = x[kept], y[kept], None if deviation is None else deviation[kept]
    steps = measured.name == "J"
    every = max(1, len(x) // 5)
    axis.plot(
        x,
        y,
        color=look.color,
        linestyle=look.style,
        marker=look.alone if len(x) == 1 else look.marker,
        markevery=(min(look.first, every - 1) % every, every),
        drawstyle="steps-post" if steps else "default",
        **({"linewidth": 3.0, "markersize": 5.5} if look.wide else {}),
    )
    if deviation is not None:
        band = {"step": "post"} if steps else {}
        axis.fill_between(x, y - deviation, y + deviation, color=look.color, alpha=0.2, linewidth=0, **band)
    if look.stopped and len(x):
        axis.plot(x[-1:], y[-1:], "x", color=look.color, markersize=6, markeredgewidth=1.4, clip_on=False, zorder=5)
    return False


def _stopped(series: Series) -> str:
    """What became of a run that is drawn though it has not finished; nothing for others."""
    setting = series.settings[0]
    return "" if all(run.finished for run in setting.finished) else setting.finished[-1].status


def _share(panels: Mapping[int, Any], shown: Shown, row: int) -> None:
    """The same limits for panels of a row, and a logarithmic y axis for what is counted in powers.

    The beginning of training, where all are alike, is cut off if it would take most of the height from the end.
    """
    axes = list(panels.values())
    curves = [curve for panel in panels for _, _, curve in shown.lines[row, panel]]
    if not curves:
        return
    low = min(axis.get_ylim()[0] for axis in axes)
    high = max(axis.get_ylim()[1] for axis in axes)
    means = np.concatenate([curve.mean for curve in curves])
    ends = [float(value) for curve in curves for value in curve.mean[-max(1, len(curve.mean) // 2) :]]
    room = max(max(ends) - min(ends), 0.08 * abs(max(ends)))
    if shown.rows[row].measures[0].better == "max":
        low = max(low, min(ends) - 1.5 * room)
    elif shown.rows[row].measures[0].better == "min":
        high = min(high, max(ends) + 1.5 * room)
    positive = means[np.isfinite(means) & (means > 0)]
    powers = all(each.name in ("J", "noise_scale") for each in shown.rows[row].measures) and len(positive)
    powers = powers and positive.max() > MUCH * positive.min()
    for axis in axes:
        if powers:
            axis.set_ylim(positive.min() / 1.2, positive.max() * 1.2)
            logarithmic(axis, "y", base=2 if shown.rows[row].measures[0].name == "J" else 10)
        else:
            axis.set_ylim(low, high)
            if all(each.name in COUNTED for each in shown.rows[row].measures):
                whole(axis.yaxis)


def _enters(line: Any, low: float, high: float) -> float | None:
    """Where a curve is first between these heights or about to be; None for levels and where it never is."""
    x, y = (np.asarray(values, np.float64) for values in line.get_data())
    inside = np.flatnonzero((y >= low) & (y <= high) & (x > 0))
    if not len(inside) or len(x) != len(y) or line.get_transform() != line.axes.transData:
        return None
    before = inside[0] - 1
    return float(x[before] if before >= 0 and x[before] > 0 else x[inside[0]])


def _finish(axes: Any, used: set[tuple[int, int]], title: str, counted: bool, logx: bool, apart: bool) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    shared = [axes[place] for place in used if axes[place].lines]
    low, high = min(axis.get_xlim()[0] for axis in shared), max(axis.get_xlim()[1] for axis in shared)
    if logx:  # from where the first curve comes into view
        begins = [first for axis in shared for line in axis.lines if (first := _enters(line, *axis.get_ylim())) is not None]
        low, high = min(begins, default=low) / 1.15, max(float(np.max(line.get_xdata())) for axis in shared for line in axis.lines) * 1.15
    rows = axes.shape[0]
    for row, column in np.ndindex(axes.shape):
        axis = axes[row, column]
        if (row, column) not in used:
            axis.remove()
            continue
        if not apart:
            axis.set_xlim(low, high)
        if logx:
            logarithmic(axis, "x")
        else:
            axis.xaxis.set_major_locator(MaxNLocator(5, integer=counted))
            axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: plain(value)))
        below = any((under, column) in used for under in range(row + 1, rows))
        if below:
            axis.tick_params(labelbottom=False)
        else:
            axis.set_xlabel(title)
