"""A figure's plan for the runs that there are: axes on which they do not differ are dropped, others find a place, settings theirs."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fl_hydra.report.axes import Axis, Value, axis, in_order, varying
from fl_hydra.report.colors import colors, palette_of_one
from fl_hydra.report.results import Results, Setting, narrowed
from fl_hydra.report.spec import Comparison, FigureSpec

MOST_SERIES = 8
"""Lines in a panel, at most; where there are more, they are split over several panels, as :meth:`Fitted.parted` does it."""

MOST_DASHES = 4
"""Values that are told apart by their dashes, at most."""

MOST_PANELS = 12
"""Panels of a figure for each measure, at most; captions say how many are left out."""

DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.2, 1, 1.2)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", "p", ">", "h")


@dataclass(frozen=True)
class Series:
    """A line or its like: a setting for curves, those along x for lines. label: nothing where it is the only one."""

    color: Value
    dash: Value
    settings: tuple[Setting, ...]


@dataclass(frozen=True)
class Panel:
    """Series that share axes. title: where it lies on the facets. part: which part of the series there, `1 of 2`, if not all."""

    title: str
    series: tuple[Series, ...]
    part: str = ""

    @property
    def heading(self) -> str:
        """What is written above it."""
        return f"{self.title} ({self.part})".lstrip() if self.part else self.title

    @property
    def reference(self) -> Series | None:
        """The series that each part has."""
        return self.series[0] if self.part else None

    @property
    def settings(self) -> list[Setting]:
        """All of its series."""
        return [setting for each in self.series for setting in each.settings]


@dataclass(frozen=True)
class Fitted:
    """A figure's specification, fitted. x, y: axes of settings; None for measures. chosen: what was narrowed, as labels."""

    spec: FigureSpec
    panels: tuple[Panel, ...]
    color: Axis | None
    dash: Axis | None
    facets: tuple[Axis, ...]
    x: Axis | None = None
    y: Axis | None = None
    chosen: tuple[str, ...] = ()
    left_out: int = 0
    empty: tuple[str, ...] = ()
    """Titles of panels without any result, which are not drawn."""
    shared: tuple[str, ...] = ()
    """Labels of the series that are in each part of a panel."""

    def with_results(self) -> Fitted:
        """Without the panels in which no setting has a result, if there are others."""
        kept = tuple(panel for panel in self.panels if any(setting.finished for setting in panel.settings))
        empty = tuple(panel.title for panel in self.panels if panel not in kept)
        return dataclasses.replace(self, panels=kept, empty=empty) if kept and empty else self

    def parted(self, compare: Sequence[Comparison]) -> Fitted:
        """With at most :data:`MOST_SERIES` lines in a panel: where there are more, they are split over several.

        Each part repeats the line against which the section compares the others, or the first one, so that all are seen beside it.
        """
        panels: list[Panel] = []
        shared: dict[str, None] = {}
        for panel in self.panels:
            drawn = [series for series in panel.series if any(setting.finished for setting in series.settings)]
            if len(drawn) <= MOST_SERIES or self.color is None:
                panels.append(panel)
                continue
            color = self.color
            mine = [each for each in compare if each.axis == color.name]
            named = (series for each in mine for series in drawn if each.refers_to(color, series.color))
            reference = next(named, drawn[0])
            shared[color.label(reference.color)] = None
            others = [series for series in drawn if series is not reference]
            without = [series for series in panel.series if series not in drawn]
            parts = -(-len(others) // (MOST_SERIES - 1))
            size = -(-len(others) // parts)
            for part in range(parts):
                last = without if part == parts - 1 else []  # not drawn, but told of
                series = (reference, *others[part * size : (part + 1) * size], *last)
                panels.append(Panel(panel.title, series, f"{part + 1} of {parts}"))
        shown = tuple(panels[:MOST_PANELS])
        left_out = self.left_out + len(panels) - len(shown)
        return dataclasses.replace(self, panels=shown, left_out=left_out, shared=tuple(shared))

    @property
    def apart(self) -> bool:
        """Whether panels are of other data or models, whose losses and accuracies share no axis."""
        return any(each.name in ("dataset", "model") for each in self.facets)

    @property
    def missing(self) -> tuple[str, ...]:
        """The series of which no run has finished, as the legend names them, with their panels where these are several."""
        looks = [(each, which) for each, which in (("color", self.color), ("dash", self.dash)) if which is not None]
        found: dict[str, list[str]] = {}
        for panel in self.panels:
            for series in panel.series:
                if not any(setting.finished for setting in series.settings):
                    name = ", ".join(which.label(getattr(series, each)) for each, which in looks) or "all"
                    found.setdefault(name, []).append(panel.title)
        places = len({panel.title for panel in self.panels})
        return tuple(name if len(titles) == places else f"{name} ({'; '.join(titles)})" for name, titles in found.items())

    @property
    def settings(self) -> list[Setting]:
        """Of all panels."""
        return [setting for panel in self.panels for setting in panel.settings]

    def values(self, which: Axis, drawn: bool = False) -> list[Value]:
        """Of an axis, in order; with `drawn`, of settings with results alone."""
        return in_order([which.of(setting.config) for setting in self.settings if setting.finished or not drawn])

    @property
    def colors(self) -> dict[Value, str]:
        """By value of color; of a figure without, the method's."""
        if self.color is None:
            return {None: palette_of_one([setting.method for setting in self.settings])}
        return colors(self.color, self.values(self.color))

    @property
    def markers(self) -> dict[Value, str]:
        """By value of color."""
        return dict(zip(self.values(self.color), MARKERS * 9, strict=False)) if self.color else {None: MARKERS[0]}

    @property
    def dashes(self) -> dict[Value, Any]:
        """By value of dash."""
        return dict(zip(self.values(self.dash), DASHES, strict=False)) if self.dash else {None: DASHES[0]}


def fitted(spec: FigureSpec, results: Results) -> Fitted | None:
    """A figure of these results; None where there is nothing to put on an axis."""
    settings, chosen = _narrowed(spec, list(results.settings))
    if not settings:
        return None
    differ = varying([setting.config for setting in settings])
    named = {each.name for each in differ}
    x = axis(spec.x) if spec.kind in ("lines", "heat") else None
    y = axis(spec.y[0]) if spec.kind == "heat" else None

    apart = [axis(name) for name in (spec.color, spec.dash, spec.facet) if name]

    def varies(one: Axis) -> bool:
        """An axis of which another tells the value, as the optimizer tells a rate that is its own, is none."""
        told = one in (x, y) and _told(one, [each for each in apart if each not in (x, y)], settings)
        return len({one.of(setting.config) for setting in settings}) > 1 and not told

    if x is not None and y is not None and not (varies(x) and varies(y)):  # a single row or column: a line says it better
        other = x if varies(x) else y
        left = next((each for each in (spec.facet,) if each), None)
        return fitted(dataclasses.replace(spec, kind="lines", x=other.name, y=(spec.value,), color=left, facet=None), results)
    if x is not None and not varies(x):
        return None
    slots: dict[str, Axis | None] = {}
    for slot in ("color", "dash", "facet"):
        name = getattr(spec, slot)
        slots[slot] = axis(name) if name and varies(axis(name)) and axis(name) not in (x, y) else None
    if slots["color"] is None and slots["dash"] is not None:
        slots["color"], slots["dash"] = slots["dash"], None
    used = [each for each in (x, y, *slots.values()) if each is not None]
    loose = [each for each in differ if each not in used and not _told(each, used, settings)] if named else []
    lines = ("color", "dash", "facet")
    free = {"curves": lines, "lines": lines, "clients": lines, "targets": ("color", "facet")}
    for slot in free.get(spec.kind, ("facet",)):
        if slots[slot] is None and loose:
            slots[slot] = loose.pop(0)
    groups = [each for each in slots.values() if each] + loose
    cells = math.prod(len({each.of(setting.config) for setting in settings}) for each in groups)
    no_grid = len(groups) > 1 and len(settings) <= MOST_SERIES and (cells >= 2 * len(settings) or loose)
    if spec.kind in ("curves", "clients", "targets") and no_grid:
        slots, loose = {"color": _by_label(settings), "dash": None, "facet": None}, []  # each for itself
    color, dash, facet = slots["color"], slots["dash"], slots["facet"]
    facets = [each for each in (facet, *loose) if each is not None]
    if dash is not None:
        values = {dash.of(setting.config) for setting in settings}
        colors_of = {color.of(setting.config) for setting in settings} if color else {None}
        if len(values) > MOST_DASHES or len(values) * len(colors_of) > MOST_SERIES:
            facets, dash = [*facets, dash], None
    if spec.kind in ("heat", "sampling", "classes") and color is not None and spec.kind != "sampling":
        facets, color = [*facets, color], None
    panels = list(_panels(settings, color, dash, facets))
    shown = tuple(panels[:MOST_PANELS])
    return Fitted(spec, shown, color, dash, tuple(facets), x, y, tuple(chosen), len(panels) - len(shown))


def _narrowed(spec: FigureSpec, settings: list[Setting]) -> tuple[list[Setting], list[str]]:
    """Settings of a figure, and what it was narrowed to, in words."""
    kept = narrowed(settings, spec.where)
    chosen = []
    for which in map(axis, spec.where):
        if len({which.of(setting.config) for setting in settings}) > 1:
            value = which.of(kept[0].config)
            chosen.append(f"{which.title} {which.text(value)}" if isinstance(value, str) else which.label(value))
    return kept, chosen


def _told(one: Axis, used: Sequence[Axis], settings: Sequence[Setting]) -> bool:
    """Whether the value of an axis follows from those of others."""
    pairs = {(tuple(each.of(setting.config) for each in used), one.of(setting.config)) for setting in settings}
    return len(pairs) == len({known for known, _ in pairs})


def _by_label(settings: Sequence[Setting]) -> Axis:
    labels = {_key(setting.config): setting.label for setting in settings}
    return Axis("setting", "setting", lambda config: labels[_key(config)])


def _key(config: Mapping[str, Any]) -> str:
    return json.dumps({key: value for key, value in config.items() if key != "seed"}, sort_keys=True)


def _told_apart(one: Axis, value: Value) -> str:
    """A facet's value; with the name of the key, where the value does not tell it."""
    if isinstance(value, str) and (one.name.startswith("algorithm.") or one.name == "speeds"):
        return f"{one.name.rpartition('.')[2]}: {one.text(value)}"
    return one.label(value)


def _panels(settings: Sequence[Setting], color: Axis | None, dash: Axis | None, facets: Sequence[Axis]) -> Iterator[Panel]:
    def places(axes: Sequence[Axis], among: Sequence[Setting]) -> list[tuple[Value, ...]]:
        ranks = [in_order([each.of(setting.config) for setting in among]) for each in axes]
        different = {tuple(each.of(setting.config) for each in axes) for setting in among}
        return sorted(different, key=lambda place: [rank.index(value) for rank, value in zip(ranks, place, strict=True)])

    looks = [each for each in (color, dash) if each is not None]
    for place in places(facets, settings):
        inside = [setting for setting in settings if tuple(each.of(setting.config) for each in facets) == place]
        title = ", ".join(_told_apart(each, value) for each, value in zip(facets, place, strict=True))
        series = []
        for look in places(looks, inside):
            mine = tuple(setting for setting in inside if tuple(each.of(setting.config) for each in looks) == look)
            found = dict(zip(looks, look, strict=True))
            series.append(Series(found[color] if color else None, found[dash] if dash else None, mine))
        yield Panel(title, tuple(series))
