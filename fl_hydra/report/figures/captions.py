"""Captions: what a figure shows, over how many seeds, and what its marks mean."""

from __future__ import annotations

from fl_hydra.report.axes import Axis
from fl_hydra.report.cost import CostTable
from fl_hydra.report.figures import curves, heat, lines, ranked, search, targets
from fl_hydra.report.figures.drawing import Planned, planned, sheets
from fl_hydra.report.figures.fitting import Fitted
from fl_hydra.report.figures.legends import pretty
from fl_hydra.report.measures import Measure, measure
from fl_hydra.report.results import Results, Setting
from fl_hydra.report.spec import Spec
from fl_hydra.report.wording import bare, capital, listed


def captions(results: Results, spec: Spec, table: CostTable) -> dict[str, str]:
    """Plain sentences for each file of figures that is drawn, by its name; where it has several, with their letters."""
    found = {}
    for sheet in sheets(planned(results, spec, table)):
        told = [caption(each, table) for each in sheet]
        if len(told) > 1:
            seeds = _seeds(sheet[-1].plan.settings, _deviations(sheet[-1].plan))  # what is said of all is said at the end
            told = [*(words.removesuffix(seeds).rstrip() for words in told[:-1]), told[-1]]
            told = [f"({letter}) {words}" for letter, words in zip("abcdefgh", told, strict=False)]
        found[sheet[0].name] = " ".join(told)
    return found


def caption(one: Planned, table: CostTable) -> str:
    """What a figure shows, in sentences."""
    plan = one.plan
    if isinstance(one.shown, search.Shown):
        return search.caption(one.shown)
    words = [_what(one)]
    if plan.chosen:
        words.append(f"Shown for {listed(plan.chosen)}.")
    if one.repeated:
        others = [bare(measure(name, table)) for name in one.repeated]
        words.append(f"The curves look the same against {listed(others)}.")
    if plan.spec.beside:
        words.append(f"With the runs of section {plan.spec.beside}.")
    if plan.shared:
        wide = ", drawn wide" if plan.spec.kind in ("curves", "clients") else ""
        words.append(f"The lines are split over several panels, each with {pretty(listed(plan.shared))}{wide}.")
    if plan.left_out:
        words.append(f"{plan.left_out} further panel{'s are' if plan.left_out > 1 else ' is'} left out.")
    if plan.empty:
        words.append(f"No result yet, so no panel: {pretty('; '.join(plan.empty))}.")
    if plan.spec.kind in ("curves", "clients") and plan.missing:
        words.append(f"No result: {pretty('; '.join(plan.missing))}.")
    if plan.spec.kind != "classes":  # of one seed
        words.append(_seeds(plan.settings, _deviations(plan)))
    return " ".join(word for word in words if word)


def _what(one: Planned) -> str:
    plan, shown = one.plan, one.shown
    by = _by([plan.color, plan.dash], plan.facets)
    if isinstance(shown, curves.Shown):
        ys = [each for row in shown.rows for each in row.measures]
        what = f"{capital(listed([bare(each) for each in ys]))} against {bare(shown.x)}{by}"
        return f"{what}. The beginning of training may lie outside the axes."
    if isinstance(shown, lines.Shown):
        assert plan.x is not None
        marks = {
            "best": " Rings mark the maximum of each line by validation.",
            "reference": f" Rings mark the largest {plan.x.title} of each line that loses at most one percentage point to the best "
            f"result with {pretty(plan.x.label(shown.xs[0]))}.",
        }
        what = f"{capital(listed([bare(each) for each in shown.measures]))} {_final(shown.measures[0])} against {plan.x.title}{by}."
        scaled = any(str(each).startswith("scaled ") for look in (plan.dash, plan.color) if look is not None for each in plan.values(look))
        why = " Scaled: the rate grows with the batch size and warms up." if scaled else ""
        lost = any(
            lines.lacking(plan, shown, row, index, number)
            for row in range(len(shown.measures))
            for index, panel in enumerate(plan.panels)
            for number in range(len(panel.series))
        )
        crosses = " Crosses below the axis, in the colours of the lines: no result there (unfinished or diverged)." if lost else ""
        return what + why + marks.get(plan.spec.mark, "") + crosses
    if isinstance(shown, heat.Shown):
        assert plan.x is not None and plan.y is not None
        missing = [heat.why(setting) for place, setting in shown.asked.items() if place not in shown.cells]
        hatched = f" Hatched: no result{' (div.: diverged)' if 'div.' in missing else ''}." if missing else ""
        where = f"by {plan.y.title} and {plan.x.title}{by}"
        tied = any(len(places) > 1 for places in shown.best.values())
        within = " within a column, which is a task of its own" if shown.columns else ""
        unit = ", in %" if shown.value.unit == "%" else ""
        return (
            f"{capital(bare(shown.value))} {_final(shown.value)} {where}{unit}; darker is better{within}, and a "
            f"frame marks the best by validation{', all of them where they are equal' if tied else ''}.{hatched}"
        )
    if isinstance(shown, targets.Shown):
        what = listed([bare(each) for each in shown.measures])
        never = any(statistic is None for _, _, found in shown.lines for statistic in found)
        return (
            f"{capital(what)} when an evaluation first found a {bare(shown.accuracy)} of {shown.target:g} %."
            f"{' Never: at least one seed did not reach it.' if never else ''}"
        )
    if isinstance(shown, ranked.Shown):
        return f"Test accuracy of each client's own model, clients sorted by it{by}. The worst tenth of them lies on grey."
    if plan.spec.kind == "sampling":
        return (
            "Probability that a client is drawn first in a round, clients sorted by it; the dotted line is uniform sampling. Effective "
            "clients, 1 / Σp²: how many equally probable clients would be as concentrated."
        )
    if shown[0][1].kind == "characters":
        return f"How frequent the most common characters are in each client's text, relative to all text{by} (first seed)."
    return f"Classes of each client's samples{by} (first seed)."


def _final(of: Measure) -> str:
    """What a figure is of, after its name; that of clients' own models says this itself."""
    return "at the end of training" if of.name.startswith("personal/") else "of the final models"


def _by(looks: list[Axis | None], facets: tuple[Axis, ...]) -> str:
    names = list(dict.fromkeys(each.title for each in (*looks, *facets) if each is not None))
    return f", by {listed(names)}" if names else ""


def _deviations(plan: Fitted) -> str:
    """What shows deviations over seeds in a figure; nothing where they are not shown."""
    return {"sampling": "", "heat": "±"}.get(plan.spec.kind, "bands and bars")


def _seeds(settings: list[Setting], deviations: str) -> str:
    numbers = sorted({len(setting.finished) for setting in settings if setting.finished})
    if not numbers:
        return ""
    if numbers == [1]:
        return "One seed (n=1), so no deviations." if deviations else "One seed (n=1)."
    count = f"n={numbers[0]}" if len(numbers) == 1 else f"n={numbers[0]} to {numbers[-1]}"
    return f"Means over seeds ({count}){f'; {deviations}: one standard deviation' if deviations else ''}."
