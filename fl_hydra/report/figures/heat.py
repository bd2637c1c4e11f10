"""Heat maps: the final models over two axes of settings, with mean and deviation in each cell."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from fl_hydra.report.axes import Axis, Value
from fl_hydra.report.colors import VERMILION
from fl_hydra.report.cost import CostTable
from fl_hydra.report.figures.fitting import Fitted
from fl_hydra.report.figures.legends import pretty, say_seeds
from fl_hydra.report.figures.scales import plain
from fl_hydra.report.figures.style import COLUMN, SHADES, SMALL, WIDE
from fl_hydra.report.measures import Measure, measure, validation
from fl_hydra.report.results import Setting, Statistic

CELL = 0.42
"""Width of a cell that has room for a figure, in inches."""


Group = tuple[int, Value]
"""A panel, and a column of it or None for all."""


@dataclass(frozen=True)
class Shown:
    """What is drawn: statistics by (panel, x, y), and the settings that were asked for there."""

    value: Measure
    xs: tuple[Value, ...]
    ys: tuple[Value, ...]
    cells: dict[tuple[int, Value, Value], Statistic]
    asked: dict[tuple[int, Value, Value], Setting]
    best: dict[Group, list[tuple[Value, Value]]]
    """The places of all that are equally good by validation, of each group of cells that are compared."""
    columns: bool = False
    """Whether cells are compared with those of their column alone: clients' own models where each column divides the data otherwise."""

    def group(self, panel: int, x: Value) -> Group:
        """The cells with which one is compared."""
        return panel, x if self.columns else None


def read(plan: Fitted, table: CostTable) -> Shown | None:
    """The numbers; None where there are fewer than two, or all are the same."""
    assert plan.x is not None and plan.y is not None
    value = measure(plan.spec.value, table)
    columns = value.name.startswith("personal/") and plan.x.name in ("N_c", "sharding")
    cells, asked = {}, {}
    judged: dict[Group, list[tuple[float, tuple[Value, Value]]]] = {}
    chooser = validation(value, table)
    for index, panel in enumerate(plan.panels):
        for setting in panel.settings:
            x, y = plan.x.of(setting.config), plan.y.of(setting.config)
            asked[index, x, y] = setting
            if (found := setting.final(value)) is not None:
                cells[index, x, y] = found
                if (judge := setting.final(chooser)) is not None:
                    mine = judged.setdefault((index, x if columns else None), [])
                    mine.append((judge.mean if chooser.better == "max" else -judge.mean, (x, y)))
    best = {}
    for group, compared in judged.items():
        if len(compared) > 1:
            top = max(judge for judge, _ in compared)
            best[group] = [place for judge, place in compared if math.isclose(judge, top, rel_tol=1e-12)]
    if len(cells) < 2 or len({cell.mean for cell in cells.values()}) == 1:
        return None
    return Shown(value, tuple(plan.values(plan.x)), tuple(plan.values(plan.y)), cells, asked, best, columns)


def draw(plan: Fitted, shown: Shown, open_canvas: Any) -> Any:
    """The figure: darker is better, what is missing is hatched."""
    assert plan.x is not None and plan.y is not None
    panels = len(plan.panels)
    across = len(shown.xs) * CELL + (0.0 if panels > 1 else 0.3)
    columns = min(panels, max(1, int((WIDE - 0.6) / (across + 0.12))))
    rows = -(-panels // columns)
    width = COLUMN if columns * (across + 0.12) + 0.6 <= COLUMN else WIDE
    several = any(cell.n > 1 for cell in shown.cells.values())
    size = (width, rows * (len(shown.ys) * (0.31 if several else 0.24) + 0.25) + 0.45)
    figure, axes = open_canvas(rows, columns, size, sharey=True)
    for index, axis in enumerate(axes.flat):
        if index >= panels:
            axis.remove()
            continue
        _cells(axis, shown, index, plan.apart)
        _ticks(axis, plan, shown)
        if index + columns >= panels:
            axis.set_xlabel(pretty(plan.x.title))
        if index % columns == 0:
            axis.set_ylabel(pretty(plan.y.title if len(shown.ys) > 3 or len(plan.y.title) < 16 else plan.y.name.rpartition(".")[2]))
        axis.set_title(pretty(plan.panels[index].title) if panels > 1 else shown.value.title)
        say_seeds(axis, plan.panels[index].settings)
    if panels > 1:
        figure.suptitle(shown.value.title, fontsize=8, x=0.01, ha="left")
    return figure


def _cells(axis: Any, shown: Shown, index: int, apart: bool) -> None:
    """The cells of a panel. apart: it has shades of its own, as other data have other accuracies."""
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.patches import Rectangle

    sign = -1 if shown.value.better == "min" else 1
    ranges: dict[Group, tuple[float, float]] = {}
    for x in shown.xs:
        of = shown.group(index, x)
        mine = [
            sign * cell.mean for (at, other, _), cell in shown.cells.items() if shown.group(at, other) == of or not (apart or shown.columns)
        ]
        ranges[of] = (min(mine, default=0.0), max(mine, default=0.0))
    shades = LinearSegmentedColormap.from_list("shades", SHADES)
    decimals = digits([cell.mean for cell in shown.cells.values()])
    look: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": SMALL}
    for (column, x), (row, y) in itertools.product(enumerate(shown.xs), enumerate(shown.ys)):
        cell, place = shown.cells.get((index, x, y)), (column - 0.5, row - 0.5)
        if cell is None:
            axis.add_patch(Rectangle(place, 1, 1, facecolor="white", edgecolor="0.75", hatch="////", linewidth=0))
            word = why(shown.asked.get((index, x, y)))
            axis.text(column, row, word, color="0.25", bbox={"color": "white", "pad": 0.6}, **look)
            continue
        low, high = ranges[shown.group(index, x)]
        share = (sign * cell.mean - low) / ((high - low) or 1.0)
        axis.add_patch(Rectangle(place, 1, 1, facecolor=shades(share), edgecolor="white", linewidth=0.8))
        text = f"{cell.mean:.{decimals}f}" + (f"\n±{cell.deviation:.{decimals}f}" if cell.deviation is not None else "")
        axis.text(column, row, text, color="white" if share > 0.5 else "black", linespacing=1.0, **look)
    for x, y in (place for (at, _), places in shown.best.items() if at == index for place in places):
        place = (shown.xs.index(x) - 0.5, shown.ys.index(y) - 0.5)
        axis.add_patch(Rectangle(place, 1, 1, fill=False, edgecolor=VERMILION, linewidth=1.6, zorder=5))


def _ticks(axis: Any, plan: Fitted, shown: Shown) -> None:
    assert plan.x is not None and plan.y is not None
    axis.grid(False)
    for spine in axis.spines.values():
        spine.set_visible(False)
    axis.tick_params(length=0)
    axis.set_xlim(-0.5, len(shown.xs) - 0.5)
    axis.set_ylim(len(shown.ys) - 0.5, -0.5)
    axis.set_xticks(range(len(shown.xs)), _texts(plan.x, shown.xs))
    axis.set_yticks(range(len(shown.ys)), _texts(plan.y, shown.ys))


def _texts(axis: Axis, values: tuple[Value, ...]) -> list[str]:
    return [
        plain(value) if isinstance(value, int | float) and not isinstance(value, bool) else pretty(axis.text(value)) for value in values
    ]


def why(setting: Setting | None) -> str:
    """Why a cell is empty, in a word."""
    if setting is None:
        return "not run"
    states = {run.status for run in setting.runs}
    return "div." if states == {"diverged"} else "none"


def digits(means: list[float]) -> int:
    """Decimals of numbers in cells."""
    largest = float(np.max(np.abs(means)))
    return 1 if largest >= 10 else 2 if largest >= 1 else 3
