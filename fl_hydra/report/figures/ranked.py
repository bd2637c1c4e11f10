"""Accuracies of clients' own models, from the best client to the worst."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fl_hydra.arrays import Reals
from fl_hydra.participation.held_out import members, spans
from fl_hydra.report.figures.curves import ACROSS
from fl_hydra.report.figures.fitting import Fitted, Series
from fl_hydra.report.figures.legends import at_ends, entries, legend, pretty, say_seeds
from fl_hydra.report.figures.style import COLUMN, SMALL, WIDE
from fl_hydra.report.results import Setting
from fl_hydra.runs.reading import Run

ACCURACIES = "personal/test/accs"
"""Of the last row of metrics: the accuracy of each client, None where it has no samples."""

TENTH = 90.0
"""From here on are the worst tenth, in percent of the clients."""


@dataclass(frozen=True)
class Ranked:
    """Of a setting: percent of clients, and their accuracies in percent. x, mean, deviation: float64 [clients]; None for one seed."""

    x: Reals
    mean: Reals
    deviation: Reals | None


@dataclass(frozen=True)
class Shown:
    """What is drawn, by the panel and the series in it."""

    curves: Mapping[tuple[int, int], Ranked]


def ranked(setting: Setting) -> Ranked | None:
    """The accuracies of a setting's clients at each rank, over finished seeds; None if a seed has none.

    Seeds in which other numbers of clients have samples are interpolated at the ranks of the first.
    """
    seeds = [accuracies(run) for run in setting.finished]
    if not seeds or not all(map(len, seeds)):
        return None
    places = [100 * (np.arange(len(seed)) + 0.5) / len(seed) for seed in seeds]
    curves = np.array([np.interp(places[0], place, seed) for place, seed in zip(places, seeds, strict=True)])
    return Ranked(places[0], curves.mean(0), curves.std(0, ddof=1) if len(curves) > 1 else None)


def accuracies(run: Run) -> Reals:
    """The accuracies of a run's clients in percent, best first, float64 [clients]: of those that have samples and were not held out."""
    found = (run.rows[-1].get(ACCURACIES) if run.rows else None) or ()
    held_out = run.config["participation"].get("held_out")
    away = members(() if held_out is None else spans(held_out))
    kept = [each for client, each in enumerate(found) if each is not None and client not in away]
    return 100 * np.sort(np.array(kept, np.float64))[::-1]


def read(plan: Fitted) -> Shown | None:
    """The curves; None where there is none, or a single client."""
    found = {
        (index, number): curve
        for index, panel in enumerate(plan.panels)
        for number, series in enumerate(panel.series)
        if (curve := ranked(series.settings[0])) is not None and len(curve.x) > 1
    }
    return Shown(found) if found else None


def draw(plan: Fitted, shown: Shown, open_canvas: Any) -> Any:
    """The figure: a line for each setting, with a band over seeds; the worst tenth of the clients lies on grey."""
    panels = len(plan.panels)
    parts = sum(panel.title == plan.panels[0].title for panel in plan.panels)  # of a facet, which are in one row
    columns = min(panels, parts * (ACROSS // parts)) if parts <= ACROSS else ACROSS
    rows = -(-panels // columns)
    width = COLUMN if columns == 1 else WIDE
    each = 2.1 if columns == 1 else 1.75 if rows < 3 else 1.4
    figure, axes = open_canvas(rows, columns, (width, each * rows + 0.3), sharex=True)
    for index, axis in enumerate(axes.flat):
        if index >= panels:
            axis.remove()
            continue
        for number, series in enumerate(plan.panels[index].series):
            if (curve := shown.curves.get((index, number))) is not None:
                _line(axis, plan, series, curve, wide=series is plan.panels[index].reference)
        _finish(axis, plan.panels[index].heading, first=index % columns == 0, last=index + columns >= panels)
        if index % columns:
            axis.tick_params(labelleft=plan.apart)
        if index % columns == columns - 1 or index == panels - 1:
            say_seeds(axis, plan.panels[index].settings)
    _share(plan, shown, axes)
    if panels == 1 and plan.color is not None and plan.dash is None and _name_ends(plan, shown, axes[0, 0]):
        return figure
    legend(figure, *entries(plan, marked=False), width)
    return figure


def _line(axis: Any, plan: Fitted, series: Series, curve: Ranked, wide: bool) -> None:
    color = plan.colors[series.color]
    axis.plot(curve.x, curve.mean, color=color, linestyle=plan.dashes[series.dash], **({"linewidth": 3.0} if wide else {}))
    if curve.deviation is not None:
        axis.fill_between(curve.x, curve.mean - curve.deviation, curve.mean + curve.deviation, color=color, alpha=0.15, linewidth=0)


def _finish(axis: Any, heading: str, first: bool, last: bool) -> None:
    axis.axvspan(TENTH, 100, color="0.88", linewidth=0, zorder=0)
    axis.text(TENTH - 1, 0.97, "worst tenth", transform=axis.get_xaxis_transform(), ha="right", va="top", fontsize=SMALL, color="0.35")
    axis.set_xlim(0, 100)
    axis.set_xticks([0, 25, 50, 75, 100])
    if heading:
        axis.set_title(pretty(heading))
    if first:
        axis.set_ylabel("test accuracy, %")
    axis.tick_params(labelbottom=last)
    if last:
        axis.set_xlabel("clients, best first, %")


def _share(plan: Fitted, shown: Shown, axes: Any) -> None:
    """The same y axis for all panels, unless they are of other data or models; never above 100 %."""
    means = {index: [] for index in range(len(plan.panels))}  # type: dict[int, list[Reals]]
    for (index, _), curve in shown.curves.items():
        means[index].append(curve.mean)
    for index, axis in zip(means, axes.flat, strict=False):
        found = means[index] if plan.apart else [mean for each in means.values() for mean in each]
        values = np.concatenate(found) if found else np.array([0.0, 100.0])
        room = 0.06 * max(1.0, float(np.ptp(values)))
        axis.set_ylim(max(-2.0, float(values.min()) - room), min(102.0, float(values.max()) + 3 * room))


def _name_ends(plan: Fitted, shown: Shown, axis: Any) -> bool:
    """Names where lines end, at the worst client; whether there is room."""
    assert plan.color is not None
    ends = [
        (float(curve.x[-1]), float(curve.mean[-1]), plan.color.label(series.color), plan.colors[series.color])
        for number, series in enumerate(plan.panels[0].series)
        if (curve := shown.curves.get((0, number))) is not None
    ]
    return at_ends({axis: ends})
