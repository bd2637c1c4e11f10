"""What it takes to reach an accuracy: a dot for each setting, and `never` for those that do not come to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fl_hydra.report.colors import ink
from fl_hydra.report.cost import CostTable
from fl_hydra.report.figures.fitting import Fitted, Series
from fl_hydra.report.figures.legends import pretty, say_seeds
from fl_hydra.report.figures.scales import MUCH, logarithmic, suited
from fl_hydra.report.figures.style import SMALL, WIDE
from fl_hydra.report.marks import reachable
from fl_hydra.report.measures import Measure, measure
from fl_hydra.report.results import Statistic


@dataclass(frozen=True)
class Shown:
    """What is drawn: for each line its name, series and statistics by measure."""

    target: float
    accuracy: Measure
    measures: tuple[Measure, ...]
    lines: tuple[tuple[str, Series, tuple[Statistic | None, ...]], ...]


def read(plan: Fitted, table: CostTable) -> Shown | None:
    """The numbers; None where fewer than two settings can be compared."""
    accuracy = measure(plan.spec.value, table)
    settings = plan.settings
    target = plan.spec.target if plan.spec.target is not None else reachable(settings, accuracy)
    if target is None or len(settings) < 2:
        return None
    candidates = [measure(name, table) for name in plan.spec.y]
    named = []
    for panel in plan.panels:
        for series in panel.series:
            name = ", ".join(part for part in (plan.color.label(series.color) if plan.color else "", panel.title) if part)
            if any(setting.finished for setting in series.settings):
                named.append((name, series))
    kept: list[tuple[Measure, list[Statistic | None]]] = []
    for each in candidates:
        found = [series.settings[0].reached(each, target, accuracy) for _, series in named]
        there = [statistic.mean for statistic in found if statistic is not None]
        if (
            there
            and (len(set(there)) > 1 or None in found)
            and not any(there == [s.mean for s in other if s is not None] for _, other in kept)
        ):
            kept.append((each, found))
    if not kept or len(named) < 2:
        return None
    lines = tuple((name, series, tuple(found[index] for _, found in kept)) for index, (name, series) in enumerate(named))
    return Shown(target, accuracy, tuple(each for each, _ in kept), lines)


def draw(plan: Fitted, shown: Shown, open_canvas: Any) -> Any:
    """The figure."""
    columns = len(shown.measures)
    figure, axes = open_canvas(1, columns, (WIDE if columns > 1 else WIDE / 2, 0.155 * len(shown.lines) + 0.75), sharey=True)
    for column, axis in enumerate(axes[0]):
        there = [found[column] for _, _, found in shown.lines]
        values = [statistic.mean for statistic in there if statistic is not None]
        title, scale = suited(shown.measures[column].title, max(values))
        positive = [value * scale for value in values if value > 0]
        log = bool(positive) and max(positive) > MUCH * min(positive)
        low = min(positive) / 1.6 if log else 0.0
        axis.set_xlim(low, (max(positive, default=1.0) * (2.6 if log else 1.2)))
        if log:
            logarithmic(axis, "x")
        for index, (_, series, _) in enumerate(shown.lines):
            statistic = there[index]
            color, marker = plan.colors[series.color], plan.markers[series.color]
            if statistic is None:
                axis.text(
                    0.99, index, "never", transform=axis.get_yaxis_transform(), ha="right", va="center", fontsize=SMALL, color=ink(color)
                )
            elif log and statistic.mean <= 0:
                axis.text(0.01, index, "0", transform=axis.get_yaxis_transform(), ha="left", va="center", fontsize=SMALL, color=ink(color))
            else:
                error = (
                    None
                    if statistic.deviation is None
                    else [[min(statistic.deviation, 0.999 * statistic.mean) * scale], [statistic.deviation * scale]]
                )
                axis.errorbar(
                    statistic.mean * scale, index, xerr=error, color=color, marker=marker, markersize=4.5, capsize=2, elinewidth=0.9
                )
        axis.set_xlabel(title)
        axis.set_yticks(range(len(shown.lines)), [pretty(name) for name, _, _ in shown.lines])
        axis.set_ylim(len(shown.lines) - 0.4, -0.6)
        if column:
            axis.tick_params(labelleft=False, left=False)
        if not column:
            axis.set_title(f"until {shown.accuracy.title.removesuffix(', %')} is {shown.target:g} %")
    say_seeds(axes[0, -1], plan.settings)
    return figure
