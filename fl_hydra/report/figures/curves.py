"""Curves: figures of every evaluation against rounds, samples, bytes or time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fl_hydra.report.cost import CostTable
from fl_hydra.report.figures.fitting import DASHES, Fitted, Panel, Series
from fl_hydra.report.figures.legends import at_ends, entries, legend, pretty, say_missing, say_seeds, seeds
from fl_hydra.report.figures.scales import MUCH, logarithmic, plain, suited
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
    missing: dict[int, list[str]]


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
    return Shown(x, tuple(rows), lines, {index: missing(plan, panel) for index, panel in enumerate(plan.panels)}) if rows else None


def missing(plan: Fitted, panel: Panel) -> list[str]:
    """The series of a panel of which no run has finished, by name."""
    looks = [(each, which) for each, which in (("color", plan.color), ("dash", plan.dash)) if which is not None]
    return [
        ", ".join(which.label(getattr(series, each)) for each, which in looks) or "all"
        for series in panel.series
        if not any(setting.finished for setting in series.settings)
    ]


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
        part, _, kind = each.name.partition("/")
        kinds.setdefault(kind if part in PARTS else each.name, []).append(each)
    rows = []
    for kind, group in kinds.items():
        group.sort(key=lambda each: list(PARTS).index(each.name.partition("/")[0]) if len(group) > 1 else 0)
        rows.append(Row({"loss": "loss", "acc": "accuracy, %"}.get(kind, kind) if len(group) > 1 else group[0].title, tuple(group)))
    return rows


def draw(plan: Fitted, shown: Shown, open_canvas: Any) -> Any:
    """The figure; `open_canvas(rows, columns, size)` is :func:`fl_hydra.report.figures.style.canvas`, entered."""
    panels, rows = len(plan.panels), len(shown.rows)
    if panels == 1:
        columns = 1 if rows <= 2 else min(ACROSS, rows)
        places = {(row, 0): divmod(row, columns) for row in range(rows)}
    else:
        columns = min(ACROSS, panels)
        places = {
            (row, panel): (row * -(-panels // columns) + panel // columns, panel % columns)
            for row in range(rows)
            for panel in range(panels)
        }
    height = max(row for row, _ in places.values()) + 1
    width = COLUMN if columns == 1 else WIDE
    marked = any(len(panel.series) > 1 for panel in plan.panels)
    parts = _parts(shown)
    # Of several panels, one above the other or beside each other, the legend is above them.
    each = 1.75 if columns > 1 else 1.6 if height > 1 else 2.1
    figure, axes = open_canvas(height, columns, (width, each * height + 0.3))
    largest = max((float(curve.x.max()) for of_panel in shown.lines.values() for _, _, curve in of_panel), default=0.0)
    title, scale = suited(shown.x.title, largest)
    lasts = [float(curve.x[-1]) for of_panel in shown.lines.values() for _, _, curve in of_panel if curve.x[-1] > 0]
    logx = bool(lasts) and max(lasts) > MUCH * min(lasts)
    silent = False
    alike = len({seeds(panel.settings) for panel in plan.panels}) == 1 and panels % columns == 0
    apart = any(each.name in ("dataset", "model") for each in plan.facets)  # other losses, other numbers of epochs
    for (row, panel), place in places.items():
        axis = axes[place]
        for series, one, curve in shown.lines[row, panel]:
            silent |= _line(plan, axis, series, shown.rows[row].measures.index(one), curve, scale, logx, marked, bool(parts))
        if plan.panels[panel].title and (row == 0 or (rows > 1 and -(-panels // columns) > 1)):
            axis.set_title(pretty(plan.panels[panel].title))
        if row == 0 and (place[1] == columns - 1 or not alike):
            say_seeds(axis, plan.panels[panel].settings)
        say_missing(axis, shown.missing[panel])
        if place[1] == 0 or panels == 1:
            axis.set_ylabel(shown.rows[row].title)
    for row in range(rows):
        mine = {panel: axes[place] for (at, panel), place in places.items() if at == row}
        for group in [{panel: axis} for panel, axis in mine.items()] if apart else [mine]:
            _share(group, shown, row)
        for (at, _), place in places.items():
            if at == row and place[1] and panels > 1 and not apart:
                axes[place].tick_params(labelleft=False)
    _finish(axes, set(places.values()), title, logx, apart)
    handles, names = entries(plan, marked, parts)
    if silent:
        from matplotlib.lines import Line2D

        handles.append(Line2D([], [], color="0.3", linestyle=(0, (1, 3))))
        names.append("no communication")
    if panels == 1 and rows == 1 and plan.color is not None and plan.dash is None and not parts:
        ends = [
            (float(curve.x[-1]) * scale, float(curve.mean[-1]), plan.color.label(series.color), plan.colors[series.color])
            for series, _, curve in shown.lines[0, 0]
        ]
        if max(len(name) for _, _, name, _ in ends) <= 16 and at_ends(axes[0, 0], ends):
            return figure
    legend(figure, handles, names, width)
    return figure


def _parts(shown: Shown) -> list[tuple[str, Any]]:
    most = max((row.measures for row in shown.rows), key=len)
    if len(most) < 2:
        return []
    return [(PARTS[each.name.partition("/")[0]], DASHES[index]) for index, each in enumerate(most)]


def _line(plan: Fitted, axis: Any, series: Series, part: int, curve: Curve, scale: float, logx: bool, marked: bool, parts: bool) -> bool:
    """Draw one; whether it is a level for who sends nothing."""
    color = plan.colors[series.color]
    if not curve.x.any():
        axis.axhline(curve.mean[-1], color=color, linestyle=(0, (1, 3)))
        return True
    x, y = curve.x * scale, curve.mean
    deviation = curve.deviation
    if logx:
        kept = x > 0
        x, y, deviation = x[kept], y[kept], None if deviation is None else deviation[kept]
    style = DASHES[part] if parts else plan.dashes[series.dash]
    order = list(plan.colors).index(series.color)
    every = max(1, len(x) // 5)
    few = len(x) == 1 or (marked and part == 0)
    axis.plot(
        x,
        y,
        color=color,
        linestyle=style,
        marker=plan.markers[series.color] if few else None,
        markevery=(min(order, every - 1) % every, every),
    )
    if deviation is not None:
        axis.fill_between(x, y - deviation, y + deviation, color=color, alpha=0.2, linewidth=0)
    return False


def _share(panels: Mapping[int, Any], shown: Shown, row: int) -> None:
    """The same limits for panels of a row, and a logarithmic y axis for what is counted in powers.

    The beginning of training, where all are alike, is cut off if it would take most of the height from the end.
    """
    axes = list(panels.values())
    low = min(axis.get_ylim()[0] for axis in axes)
    high = max(axis.get_ylim()[1] for axis in axes)
    curves = [curve for panel in panels for _, _, curve in shown.lines[row, panel]]
    if not curves:
        return
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


def _enters(line: Any, low: float, high: float) -> float | None:
    """Where a curve is first between these heights or about to be; None for levels and where it never is."""
    x, y = (np.asarray(values, np.float64) for values in line.get_data())
    inside = np.flatnonzero((y >= low) & (y <= high) & (x > 0))
    if not len(inside) or len(x) != len(y) or line.get_transform() != line.axes.transData:
        return None
    before = inside[0] - 1
    return float(x[before] if before >= 0 and x[before] > 0 else x[inside[0]])


def _finish(axes: Any, used: set[tuple[int, int]], title: str, logx: bool, apart: bool) -> None:
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
            axis.xaxis.set_major_locator(MaxNLocator(5))
            axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: plain(value)))
        below = any((under, column) in used for under in range(row + 1, rows))
        if below:
            axis.tick_params(labelbottom=False)
        else:
            axis.set_xlabel(title)
