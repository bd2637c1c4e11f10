"""What the page holds: sections, settings, and the figures of every evaluation, as plain values for JSON."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fl_hydra.report.axes import AXES, Axis, axis, in_order
from fl_hydra.report.colors import VERMILION, colors
from fl_hydra.report.commands import command_of
from fl_hydra.report.cost import CostTable
from fl_hydra.report.figures.style import SHADES
from fl_hydra.report.marks import reachable
from fl_hydra.report.measures import Measure, measures
from fl_hydra.report.page.clients import Clients
from fl_hydra.report.paper import BASE, FURTHER
from fl_hydra.report.results import Results, Setting
from fl_hydra.report.spec import FigureSpec, Spec
from fl_hydra.runs.reading import Run

DIGITS = 6
"""Significant digits of a figure: more than any screen shows."""

LEARNT = ("train/", "val/", "test/", "personal/")
"""How the names of losses and accuracies begin; the others are what was spent for them."""

VIEWS = {"curves": "curves", "lines": "final", "heat": "heat", "targets": "targets", "sampling": "sampling", "classes": "classes"}
"""The kinds of figures that the page has a view for, and its name there."""


def content(sections: Sequence[tuple[Results, Spec]], table: CostTable, target: Path) -> dict[str, Any]:
    """All that the page draws, with links relative to `target`."""
    known = list(measures(table).values())
    return {
        "measures": {each.name: {"title": each.title, "digits": each.digits, "better": each.better} for each in known},
        "shades": SHADES,
        "frame": VERMILION,
        "sections": [_section(results, spec, known, target) for results, spec in sorted(sections, key=_place)],
    }


def _place(section: tuple[Results, Spec]) -> tuple[int, str]:
    """Where a section of any size comes: in the order of the assignment, each track's own after its base; others last."""
    name = section[0].name
    order = [each for track in BASE for each in (*BASE[track], *FURTHER[track])]
    found = [index for index, each in enumerate(order) if name == each or name.startswith(f"{each}-")]
    return (found[0] if found else len(order), name)


def _section(results: Results, spec: Spec, known: Sequence[Measure], target: Path) -> dict[str, Any]:
    axes = _axes(results, spec)
    values = {each.name: in_order([each.of(setting.config) for setting in results.settings]) for each in axes}
    clients, pool = Clients(), dict[Column, int]()
    settings = [
        {
            "label": setting.label,
            "state": setting.state,
            "at": {each.name: values[each.name].index(each.of(setting.config)) for each in axes},
            "runs": _runs(setting, known, target, pool),
            **clients.of(_by_seed(setting)),
        }
        for setting in results.settings
    ]
    return {
        "name": results.name,
        "title": spec.title,
        "questions": spec.questions,
        "varying": [each.name for each in results.axes],
        "axes": {each.name: _axis(each, values[each.name]) for each in axes},
        "settings": settings,
        "columns": list(pool),
        "divisions": clients.divisions,
        "distributions": clients.distributions if clients.skewed else [],
        "accuracy": spec.accuracy,
        "views": _views(spec.figures, results.settings, known, [each.name for each in axes]),
    }


def _axes(results: Results, spec: Spec) -> list[Axis]:
    """Those on which settings differ, and those that the section's figures name."""
    named = [name for each in spec.figures for name in (each.color, each.dash, each.facet, *_own_axes(each)) if name]
    names = dict.fromkeys([*(each.name for each in results.axes), *named, "method"])
    return [axis(name) for name in sorted(names, key=lambda name: list(AXES).index(name) if name in AXES else len(AXES))]


def _own_axes(figure: FigureSpec) -> tuple[str, ...]:
    return {"lines": (figure.x,), "heat": (figure.x, *figure.y)}.get(figure.kind, ())


def _axis(each: Axis, values: Sequence[Any]) -> dict[str, Any]:
    palette = colors(each, values)
    return {
        "title": each.title,
        "log": each.log,
        "values": [
            {
                "text": each.text(value),
                "label": each.label(value),
                "number": value if isinstance(value, int | float) and not isinstance(value, bool) else None,
                "color": palette[value],
            }
            for value in values
        ],
    }


def _views(
    figures: Sequence[FigureSpec], settings: Sequence[Setting], known: Sequence[Measure], axes: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """How the section's own figures choose, by view: the first of each kind that the page can draw."""
    names = [each.name for each in known]
    views: dict[str, dict[str, Any]] = {}
    for figure in figures:
        if figure.kind not in VIEWS:
            continue  # trials of a search are no runs of the section
        y = next((name for name in ("personal/test/acc", "test/acc", *figure.y) if name in figure.y), "")
        chosen: dict[str, Any] = {"x": figure.x, "y": y, "value": figure.value, "color": figure.color or "", "facet": figure.facet or ""}
        if figure.kind == "targets":  # one at a time, in rows; what is to be reached is y
            chosen |= {"x": figure.y[0], "y": figure.value, "facet": "", "target": figure.target}
            if figure.target is None:
                chosen["target"] = reachable(settings, next(each for each in known if each.name == figure.value))
        elif figure.kind == "sampling":
            chosen |= {"facet": figure.color or ""}
        possible = {"curves": figure.x in names and y in names, "lines": figure.x in axes and y in names, "heat": y in axes}
        if possible.get(figure.kind, True):
            views.setdefault(VIEWS[figure.kind], chosen)
    return views


def _by_seed(setting: Setting) -> list[Run]:
    return sorted(setting.runs, key=lambda run: run.config["seed"])


Column = tuple[float | None, ...]


def _runs(setting: Setting, known: Sequence[Measure], target: Path, pool: dict[Column, int]) -> list[dict[str, Any]]:
    """By seed. What seeds have spent is worked out once where it is the same."""
    learnt = [each for each in known if each.name.startswith(LEARNT)]
    others = [each for each in known if each not in learnt]
    spent: dict[Any, dict[str, int]] = {}
    found = []
    for run in _by_seed(setting):
        columns: dict[str, int] = {}
        if run.finished:
            key = tuple(tuple((name, value) for name, value in row.items() if not name.startswith(LEARNT)) for row in run.rows)
            if key not in spent:
                spent[key] = _columns(run, others, pool)
            columns = {**_columns(run, learnt, pool), **spent[key]}
        found.append(_run(run, columns, target))
    return found


def _columns(run: Run, wanted: Sequence[Measure], pool: dict[Column, int]) -> dict[str, int]:
    """Places in a pool of columns: what is spent is mostly the same for other settings too."""
    columns = {}
    for each in wanted:
        column = tuple(_short(each.of(row, run.config)) for row in run.rows)
        if any(value is not None for value in column):
            columns[each.name] = pool.setdefault(column, len(pool))
    return columns


def _run(run: Run, columns: dict[str, int], target: Path) -> dict[str, Any]:
    return {
        "name": run.folder.name,
        "seed": str(run.config["seed"]),  # up to 2^63, of which JavaScript has no numbers
        "status": run.status,
        "why": run.why,
        "folder": Path(os.path.relpath(run.folder.absolute(), target.absolute())).as_posix(),
        "command": command_of(run),
        "columns": columns,
    }


def _short(value: float | None) -> float | int | None:
    """A figure in few digits; nothing for what is no number."""
    if value is None or not math.isfinite(value):
        return None
    short = float(f"{value:.{DIGITS}g}")
    return int(short) if short == int(short) else short
