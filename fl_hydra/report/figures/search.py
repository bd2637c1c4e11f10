"""Searches: how good trials were over the keys that were searched, as a map of two keys, or against one of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fl_hydra.report.axes import axis
from fl_hydra.report.colors import VERMILION, colors
from fl_hydra.report.figures.fitting import MARKERS
from fl_hydra.report.figures.heat import digits
from fl_hydra.report.figures.legends import legend, pretty
from fl_hydra.report.figures.scales import logarithmic, plain
from fl_hydra.report.figures.style import COLUMN, SHADES, SMALL, WIDE

MOST_MAPS = 6
"""Studies with a map of their own, at most; of more, trials are drawn against the first key."""

MOST_VALUES = 8
"""Different values of a key that are columns or rows of their own, at most; of more, neighbours share one."""

MOST_LABELS = 6
"""Columns between whose edges all numbers are written; of more, powers of ten alone."""

FULL = 1.5
"""Cells of a map for each trial, at most: among more, most would be empty."""

Value = str | int | float | bool | None


@dataclass(frozen=True)
class Trial:
    """params: by key. value: of the objective, in %, if it is an accuracy. given_up: after which part of the budget; None: complete."""

    params: Mapping[str, Any]
    value: float
    given_up: float | None


@dataclass(frozen=True)
class Study:
    """where: the fixed keys that set it apart. log: by key. trials: those with a value that can be drawn."""

    where: Mapping[str, Any]
    log: Mapping[str, bool]
    trials: tuple[Trial, ...]
    best: Trial | None


@dataclass(frozen=True)
class Shown:
    """Searches with the same objective. keys: two for maps, else the one that trials are drawn against."""

    title: str
    maximised: bool
    keys: tuple[str, ...]
    studies: tuple[Study, ...]

    def better(self, trials: Sequence[Trial]) -> Trial:
        """The best of some: what is complete before what was given up, that by how long it was kept."""
        sign = 1 if self.maximised else -1
        return max(trials, key=lambda trial: (1.0 if trial.given_up is None else trial.given_up, sign * trial.value))


def read(studies: Sequence[Mapping[str, Any]]) -> Shown | None:
    """What is drawn of searches, from their `study.json`; None where there is none, or nothing in it that varies."""
    from fl_hydra.tuning.objective import Objective

    if not studies:
        return None
    objective = Objective.of(studies[0]["objectives"][0])
    percent = objective.figure.endswith("acc") and not objective.target
    found = []
    for study in studies:
        if study["objectives"][0] != studies[0]["objectives"][0]:
            continue
        space = study["question"]["space"]
        trials = {
            each["number"]: Trial(each["params"], each["values"][0] * (100 if percent else 1), each.get("pruned_at"))
            for each in study["trials"]
            if each["values"] and math.isfinite(each["values"][0]) and each["state"] in ("complete", "pruned")
        }
        log = {key: bool(held["attributes"].get("log")) for key, held in space.items()}
        best = trials.get(study["best"][0]) if study["best"] else None
        found.append(Study(study["where"], log, tuple(trials.values()), best))
    found = [study for study in found if len(study.trials) > 1]
    keys = [key for key in (found[0].log if found else ()) if all(_varies(study, key) for study in found)]
    keys.sort(key=lambda key: not all(_is_number(trial.params[key]) for study in found for trial in study.trials))
    numbers = [key for key in keys if all(_is_number(trial.params[key]) for study in found for trial in study.trials)]
    if not numbers:
        return None
    parts = {"val": "validation", "train": "training"}
    part, _, kind = objective.figure.partition("/")
    word = f"{parts[part]} {'accuracy, %' if kind == 'acc' else 'loss'}" if part in parts and not objective.target else str(objective)
    several = len(keys) > 1 and len(found) <= MOST_MAPS
    return Shown(word, objective.maximised, tuple(keys[:2]) if several else (numbers[0],), tuple(found))


def _varies(study: Study, key: str) -> bool:
    return key in study.log and len({repr(trial.params.get(key)) for trial in study.trials}) > 1


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def draw(shown: Shown, open_canvas: Any) -> Any:
    """The figure."""
    return draw_maps(shown, open_canvas) if len(shown.keys) == 2 else _draw_points(shown, open_canvas)


def name_of(where: Mapping[str, Any]) -> str:
    """A study by its fixed keys."""
    return ", ".join(pretty(axis(key).label(value)) for key, value in where.items())


# Maps


@dataclass(frozen=True)
class Steps:
    """Columns or rows: of a value each, or (edges) between values."""

    count: int
    values: tuple[Any, ...]
    log: bool
    edges: bool

    def of(self, value: Any) -> float:
        """Where a value lies, from 0 to count; its whole part is the column."""
        if not self.edges:
            return self.values.index(value) + 0.5
        places = np.log10(self.values) if self.log else np.array(self.values, float)
        return float(np.interp(math.log10(value) if self.log else value, places, np.arange(len(places))))


def steps(values: Sequence[Any], log: bool, fine: bool) -> Steps:
    """Each value for itself, or, of many, powers of ten and (fine) three times these; parts of equal length where it is not logarithmic."""
    different = sorted(set(values), key=lambda value: (isinstance(value, str), value))
    if len(different) <= MOST_VALUES and len(different) <= len(values) / 2:
        return Steps(len(different), tuple(different), log, False)
    low, high = float(min(values)), float(max(values))
    if not (log and low > 0):
        edges = tuple(np.linspace(low, high, 6 if fine else 4))
        return Steps(len(edges) - 1, edges, False, True)
    ladder = [base * 10.0**power for power in range(-12, 13) for base in ((1.0, 3.0) if fine else (1.0,))]
    first = max(index for index, edge in enumerate(ladder) if edge <= low * (1 + 1e-9))
    last = min(index for index, edge in enumerate(ladder) if edge >= high * (1 - 1e-9))
    edges = tuple(ladder[first : max(last, first + 1) + 1])
    return Steps(len(edges) - 1, edges, True, True)


def grid(shown: Shown) -> tuple[Steps, Steps]:
    """Columns and rows for all studies together, as fine as the trials of one can fill."""
    x, y = shown.keys
    xs, ys = ([trial.params[key] for study in shown.studies for trial in study.trials] for key in (x, y))
    logs = [all(study.log[key] for study in shown.studies) for key in (x, y)]
    fewest = min(len(study.trials) for study in shown.studies)
    across, up = steps(xs, logs[0], True), steps(ys, logs[1], True)
    for fine in ((True, True), (True, False), (False, False)):
        across, up = steps(xs, logs[0], fine[0]), steps(ys, logs[1], fine[1])
        if across.count * up.count <= FULL * fewest and across.count <= MOST_VALUES >= up.count:
            break
    return across, up


def draw_maps(shown: Shown, open_canvas: Any) -> Any:
    """A map for each study: the best trial of each cell as its shade, all trials as dots, and in grey where all were given up."""
    from matplotlib.colors import LinearSegmentedColormap, Normalize
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    panels = len(shown.studies)
    columns = min(3 if panels != 4 else 2, panels)
    width = COLUMN if columns == 1 else WIDE
    rows = -(-panels // columns)
    across, up = grid(shown)
    figure, axes = open_canvas(rows, columns, (width, 1.95 * rows + (0.75 if columns == 1 else 0.55)), sharex=True, sharey=True)
    complete = sorted(trial.value for study in shown.studies for trial in study.trials if trial.given_up is None)
    given_up = sorted({trial.given_up for study in shown.studies for trial in study.trials if trial.given_up is not None})
    blues = ["#c6dbef", *SHADES[1:]]  # light ones are taken for grey
    shades = LinearSegmentedColormap.from_list("shades", blues if shown.maximised else blues[::-1])
    lowest, highest = _limits(complete, shown.maximised)
    norm = Normalize(lowest, highest)
    greys = {part: round(float(grey), 3) for part, grey in zip(given_up, np.linspace(0.93, 0.76, max(2, len(given_up))), strict=False)}
    for index, one in enumerate(axes.flat):
        if index >= panels:
            one.remove()
            continue
        draw_map(one, shown, shown.studies[index], across, up, norm, shades, greys)
        one.set_title(name_of(shown.studies[index].where))
        one.set_title(f"{len(shown.studies[index].trials)} trials", loc="right", fontsize=SMALL, color="0.35")
        if index + columns >= panels:
            one.set_xlabel(pretty(axis(shown.keys[0]).title))
        if index % columns == 0:
            one.set_ylabel(pretty(axis(shown.keys[1]).title))
    if len(complete) > 1 and complete[0] < complete[-1]:
        from matplotlib.cm import ScalarMappable

        clipped = complete[0] < lowest or complete[-1] > highest
        extend = ("min" if shown.maximised else "max") if clipped else "neither"
        bar = figure.colorbar(ScalarMappable(norm, shades), ax=list(axes.flat[:panels]), pad=0.02, aspect=25, extend=extend)
        bar.set_label(shown.title)
        bar.outline.set_linewidth(0.5)
    handles: list[Any] = []
    names = []
    if across.edges or up.edges:
        handles.append(Line2D([], [], color="black", marker="o", markersize=3, linestyle="none"))
        names.append("complete")
        if given_up:
            handles.append(
                Line2D([], [], color="black", marker="o", markersize=3, markerfacecolor="white", markeredgewidth=0.6, linestyle="none")
            )
            names.append("given up")
    handles.append(Line2D([], [], color=VERMILION, marker="o", markersize=8, fillstyle="none", linestyle="none"))
    names.append("best")
    for part, grey in greys.items():
        handles.append(Patch(color=str(grey)))
        names.append(f"given up at {100 * part:.0f} %")
    legend(figure, handles, names, width)
    return figure


def _limits(complete: Sequence[float], maximised: bool) -> tuple[float, float]:
    """Of the shades: what is far worse than most, as what diverged, is not told apart."""
    if not complete:
        return 0.0, 1.0
    middle = float(np.median(complete))
    if maximised:
        return max(complete[0], complete[-1] - 3 * (complete[-1] - middle)), complete[-1]
    return complete[0], min(complete[-1], complete[0] + 3 * (middle - complete[0]))


def draw_map(one: Any, shown: Shown, study: Study, across: Steps, up: Steps, norm: Any, shades: Any, greys: Mapping[float, float]) -> None:
    """One study on its axes."""
    from matplotlib.patches import Rectangle

    cells: dict[tuple[int, int], list[Trial]] = {}
    places = []
    for trial in study.trials:
        x, y = across.of(trial.params[shown.keys[0]]), up.of(trial.params[shown.keys[1]])
        places.append((x, y, trial))
        cells.setdefault((min(int(x), across.count - 1), min(int(y), up.count - 1)), []).append(trial)
    for cell, trials in cells.items():
        best = shown.better(trials)
        color = shades(norm(best.value)) if best.given_up is None else str(greys[best.given_up])
        one.add_patch(Rectangle(cell, 1, 1, facecolor=color, edgecolor="white", linewidth=0.8))
        if not (across.edges or up.edges):
            ink = "white" if best.given_up is None and norm(best.value) > 0.5 else "black"
            text = f"{best.value:.{digits([best.value])}f}"
            one.text(cell[0] + 0.5, cell[1] + 0.5, text, ha="center", va="center", fontsize=SMALL, color=ink)
            if study.best in trials:
                one.add_patch(Rectangle(cell, 1, 1, fill=False, edgecolor=VERMILION, linewidth=1.6, zorder=5))
    for x, y, trial in places if across.edges or up.edges else ():
        face = "black" if trial.given_up is None else "white"
        edge = "white" if face == "black" else "black"
        look = {"markersize": 3, "markerfacecolor": face, "markeredgecolor": edge, "markeredgewidth": 0.6}
        one.plot(x, y, "o", clip_on=False, **look)  # whole at the edge too
        if trial is study.best:
            one.plot(x, y, "o", markersize=9, fillstyle="none", color=VERMILION, markeredgewidth=1.4, clip_on=False, zorder=5)
    one.grid(False)
    for spine in one.spines.values():
        spine.set_visible(False)
    for each, which in ((across, "x"), (up, "y")):
        at = np.arange(len(each.values)) + (0.0 if each.edges else 0.5)
        texts = [plain(float(f"{value:.2g}")) if _is_number(value) else pretty(str(value)) for value in each.values]
        if each.edges and each.log and each.count > MOST_LABELS:
            texts = [text if math.log10(value).is_integer() else "" for text, value in zip(texts, each.values, strict=True)]
        getattr(one, f"set_{which}ticks")(at, texts)
        getattr(one, f"set_{which}lim")(0, each.count)


# Against one key


def _draw_points(shown: Shown, open_canvas: Any) -> Any:
    """Trials against a key: a panel for each value of the first keys that set studies apart, a colour for each value of the last."""
    from matplotlib.lines import Line2D

    (key,) = shown.keys
    fixed = [each for each in shown.studies[0].where if len({repr(study.where.get(each)) for study in shown.studies}) > 1]
    last = axis(fixed[-1]) if fixed else None
    panels: dict[str, list[Study]] = {}
    for study in shown.studies:
        panels.setdefault(name_of({each: study.where.get(each) for each in fixed[:-1]}), []).append(study)
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    width = COLUMN if columns == 1 else WIDE
    figure, axes = open_canvas(rows, columns, (width, (1.75 if columns > 1 else 2.1) * rows + 0.3), sharex=True, sharey=True)
    values = list(dict.fromkeys(study.where[last.name] for study in shown.studies)) if last else [None]
    paint = colors(last, values) if last else {None: "#0072B2"}
    marks = dict(zip(values, MARKERS * 9, strict=False))
    for index, one in enumerate(axes.flat):
        if index >= len(panels):
            one.remove()
            continue
        title, studies = list(panels.items())[index]
        for study in studies:
            value = study.where[last.name] if last else None
            for trial in study.trials:
                face = paint[value] if trial.given_up is None else "white"
                one.plot(
                    trial.params[key],
                    trial.value,
                    marks[value],
                    color=paint[value],
                    markerfacecolor=face,
                    markeredgewidth=0.7,
                    linestyle="none",
                )
                if trial is study.best:
                    one.plot(trial.params[key], trial.value, "o", markersize=8.5, fillstyle="none", color=paint[value])
        one.set_title(title)
        if index + columns >= len(panels):
            one.set_xlabel(pretty(axis(key).title))
        if index % columns == 0:
            one.set_ylabel(shown.title)
    if all(study.log[key] for study in shown.studies):
        logarithmic(axes[0, 0], "x")
    handles: list[Any] = [Line2D([], [], linestyle="none", marker=marks[value], color=paint[value]) for value in values] if last else []
    names = [pretty(last.label(value)) for value in values] if last else []
    if any(trial.given_up is not None for study in shown.studies for trial in study.trials):
        handles.append(Line2D([], [], color="0.3", marker="o", markerfacecolor="white", markeredgewidth=0.7, linestyle="none"))
        names.append("given up")
    handles.append(Line2D([], [], color="0.3", marker="o", markersize=8, fillstyle="none", linestyle="none"))
    names.append("best")
    legend(figure, handles, names, width)
    return figure


def caption(shown: Shown) -> str:
    """What the figure shows, in sentences."""
    given_up = any(trial.given_up is not None for study in shown.studies for trial in study.trials)
    what = shown.title.removesuffix(", %")
    if len(shown.keys) == 1:
        text = f"{what[:1].upper()}{what[1:]} of the trials of {'a search' if len(shown.studies) == 1 else 'searches'} against "
        return text + f"{axis(shown.keys[0]).title}.{' Hollow: given up before the end.' if given_up else ''} Rings mark the best."
    x, y = (axis(key).title for key in shown.keys)
    grey = "; hollow ones were given up after a part of the budget, and so were all in grey cells" if given_up else ""
    return (
        f"Search over {x} and {y}. Dots are trials{grey}; shades are the best {what} of complete ones in each cell. A ring marks the best."
    )
