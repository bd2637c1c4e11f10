"""All figures of a section, and their captions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fl_hydra.report.axes import axis
from fl_hydra.report.cost import CostTable
from fl_hydra.report.figures import clients, curves, heat, lines, ranked, search, targets
from fl_hydra.report.figures.fitting import MOST_SERIES, Fitted, fitted
from fl_hydra.report.figures.style import COLUMN, WIDE, blank, canvas, save
from fl_hydra.report.marks import reachable
from fl_hydra.report.measures import measure
from fl_hydra.report.results import Results, Setting
from fl_hydra.report.spec import FigureSpec, Spec
from fl_hydra.runs.reading import Run


@dataclass(frozen=True)
class Planned:
    """A figure that says something: its numbers, and how it is drawn on a canvas."""

    name: str
    plan: Fitted
    shown: Any
    draw: Callable[[Any], Any]
    repeated: tuple[str, ...] = ()
    """Measures that would have looked the same."""


def draw_figures(results: Results, spec: Spec, table: CostTable, target: Path) -> list[Path]:
    """Write `SECTION-NAME.pdf` and `.png` of each figure that says something into the folder `target`, and take others away; the files.

    Raises:
        UserError: a figure asks for a measure that is not there.
    """
    written = []
    for sheet in sheets(planned(results, spec, table)):
        with ExitStack() as stack:
            if len(sheet) == 1:
                figure = sheet[0].draw(lambda *size, stack=stack, **share: stack.enter_context(_open(*size, **share)))
            else:
                figure = stack.enter_context(_compose(sheet))
            written += save(figure, target / f"{results.name}-{sheet[0].name}")
    for each in spec.figures:
        for path in (target / f"{results.name}-{each.name}{suffix}" for suffix in (".pdf", ".png")):
            if path not in written:
                path.unlink(missing_ok=True)
    return written


def sheets(figures: Sequence[Planned]) -> list[list[Planned]]:
    """Figures by the file that they share: those `under` another are in its file, or, without it, in that of the first of them."""
    found: dict[str, list[Planned]] = {}
    for each in figures:
        found.setdefault(each.plan.spec.under or each.name, []).append(each)
    return list(found.values())


def _open(rows: int, columns: int, size: tuple[float, float], **share: Any) -> AbstractContextManager[tuple[Any, Any]]:
    return canvas(rows, columns, size, **share)


@contextmanager
def _compose(sheet: Sequence[Planned]) -> Iterator[Any]:
    """One figure of several, one below the other, with letters; those of a column's width are beside each other."""
    sizes = []
    for each in sheet:  # how large a figure is, it decides itself
        with ExitStack() as stack:
            figure = each.draw(lambda *size, stack=stack, **share: stack.enter_context(_open(*size, **share)))
            sizes.append(figure.get_size_inches())
    rows: list[list[int]] = []
    for index, (width, _) in enumerate(sizes):
        if rows and len(rows[-1]) == 1 and width <= COLUMN and sizes[rows[-1][0]][0] <= COLUMN:
            rows[-1].append(index)
        else:
            rows.append([index])
    heights = [max(float(sizes[index][1]) for index in row) for row in rows]
    with blank((WIDE, sum(heights))) as whole:
        below = whole.subfigures(len(rows), 1, squeeze=False, height_ratios=heights)
        for row, (part,) in zip(rows, below, strict=True):
            for index, place in zip(row, part.subfigures(1, len(row), squeeze=False)[0], strict=True):
                sheet[index].draw(lambda r, c, _, place=place, **share: (place, place.subplots(r, c, squeeze=False, **share)))
                place.text(0.003, 0.995, "abcdefgh"[index], ha="left", va="top", fontweight="bold")
        yield whole


@dataclass(frozen=True)
class Begun(Setting):
    """A setting whose runs are drawn as far as they have come, whatever became of them."""

    @property
    def finished(self) -> list[Run]:
        """The runs with figures, by seed."""
        return sorted((run for run in self.runs if run.rows), key=lambda run: run.config["seed"])


def draw_runs(runs: Sequence[Run], table: CostTable, target: Path, name: str = "runs", begun: bool = False) -> list[Path]:
    """Draw any runs into the folder `target`, as a grid that has no figures of its own, as `NAME-FIGURE`.

    Runs that differ in nothing but the seed are each for themselves, if there are no others. With `begun`, where one has not finished, the
    curves of all are drawn until they break off, with a mark there; a run without rows is none.
    """
    results = Results.of(name, [run for run in runs if run.config])
    axes = results.axes
    if len(results.settings) == 1 and len(runs) <= MOST_SERIES:
        results = Results(name, [Setting(run.label, [run]) for run in results.settings[0].runs])
        axes = [axis("seed")]
    spec = Spec.default(name, axes).fitting(results)
    if begun and not all(run.finished for run in runs):
        results = Results(name, [Begun(each.label, each.runs) for each in results.settings])
        spec = replace(spec, figures=tuple(figure for figure in spec.figures if figure.kind == "curves"))
    return draw_figures(results, spec, table, target)


def planned(results: Results, spec: Spec, table: CostTable) -> list[Planned]:
    """The figures of a section that say something, without those that repeat another."""
    found: list[Planned] = []
    seen: dict[Any, int] = {}
    for figure in spec.figures:
        if figure.kind == "search":
            found += _searches(figure, results)
            continue
        if figure.beside and not results.others.get(figure.beside):
            continue
        if figure.kind == "targets" and figure.target is None:  # the same for all that is told of the section
            figure = replace(figure, target=reachable(results.settings, measure(figure.value, table)))
        plan = fitted(figure, replace(results, settings=[*results.others.get(figure.beside, ()), *results.settings]))
        if plan is None:
            continue
        if plan.spec.kind not in ("sampling", "classes"):
            plan = plan.with_results()
        if plan.spec.kind in ("curves", "lines", "clients"):
            plan = plan.parted(spec.compare)
        one = _planned(figure, plan, table)
        if one is None:
            continue
        mark = _signature(one)
        if mark in seen:
            first = found[seen[mark]]
            again = (figure.x,) if figure.x else ()
            found[seen[mark]] = Planned(first.name, first.plan, first.shown, first.draw, (*first.repeated, *again))
            continue
        seen[mark] = len(found)
        found.append(one)
    return found


def _planned(figure: FigureSpec, plan: Fitted, table: CostTable) -> Planned | None:
    kind = plan.spec.kind
    shown: Any
    if kind == "curves":
        shown = curves.read(plan, table)
        return shown and Planned(figure.name, plan, shown, lambda opened: curves.draw(plan, shown, opened))
    if kind == "lines":
        shown = lines.read(plan, table)
        return shown and Planned(figure.name, plan, shown, lambda opened: lines.draw(plan, shown, table, opened))
    if kind == "heat":
        shown = heat.read(plan, table)
        return shown and Planned(figure.name, plan, shown, lambda opened: heat.draw(plan, shown, opened))
    if kind == "targets":
        shown = targets.read(plan, table)
        return shown and Planned(figure.name, plan, shown, lambda opened: targets.draw(plan, shown, opened))
    if kind == "clients":
        shown = ranked.read(plan)
        return shown and Planned(figure.name, plan, shown, lambda opened: ranked.draw(plan, shown, opened))
    if kind == "sampling":
        shown = clients.read_probabilities(plan)
        return shown and Planned(figure.name, plan, shown, lambda opened: clients.draw_probabilities(shown, opened))
    shown = clients.read_classes(plan)
    return shown and Planned(figure.name, plan, shown, lambda opened: clients.draw_classes(shown, opened))


def _searches(figure: FigureSpec, results: Results) -> list[Planned]:
    shown = search.read(results.studies)
    return [Planned(figure.name, Fitted(figure, (), None, None, ()), shown, lambda opened: search.draw(shown, opened))] if shown else []


def _signature(one: Planned) -> Any:
    """The same for figures that look the same: curves against measures that are proportional, lines or clients of the same numbers."""
    looks = tuple(axis.name for axis in (one.plan.color, one.plan.dash, *one.plan.facets) if axis is not None)
    if isinstance(one.shown, curves.Shown):
        return "curves", tuple(curves.signature(one.shown, row) for row in range(len(one.shown.rows)))
    if isinstance(one.shown, lines.Shown):
        return "lines", one.plan.x.name if one.plan.x else "", tuple(each.name for each in one.shown.measures), looks
    if isinstance(one.shown, ranked.Shown):
        return "clients", looks, tuple((place, *curve.mean.round(6)) for place, curve in one.shown.curves.items())
    return one.name
