"""What is said below a figure: what it shows, of how many seeds, and what its marks mean."""

from __future__ import annotations

from fl_hydra.report.axes import Axis
from fl_hydra.report.cost import CostTable
from fl_hydra.report.figures import curves, heat, lines, targets
from fl_hydra.report.figures.drawing import Planned, planned
from fl_hydra.report.measures import Measure, measure
from fl_hydra.report.results import Results, Setting
from fl_hydra.report.spec import Spec


def captions(results: Results, spec: Spec, table: CostTable) -> dict[str, str]:
    """Plain sentences for each figure that is drawn, by its name."""
    return {each.name: caption(each, table) for each in planned(results, spec, table)}


def caption(one: Planned, table: CostTable) -> str:
    """What a figure shows, in sentences."""
    plan = one.plan
    words = [_what(one, table)]
    if plan.chosen:
        words.append(f"Shown for {_and(plan.chosen)}.")
    if one.repeated:
        others = [measure(name, table).title.rpartition(", ")[0] or measure(name, table).title for name in one.repeated]
        words.append(f"Against {_and(others)} the curves look the same.")
    if plan.left_out:
        words.append(f"{plan.left_out} further panels are left out.")
    words.append(_seeds(plan.settings, isinstance(one.shown, heat.Shown)))
    return " ".join(word for word in words if word)


def _what(one: Planned, table: CostTable) -> str:
    plan, shown = one.plan, one.shown
    by = _by([plan.color, plan.dash], plan.facets)
    if isinstance(shown, curves.Shown):
        ys = [each for row in shown.rows for each in row.measures]
        what = f"{_first(_and([_bare(each) for each in ys]))} against {_bare(shown.x)}{by}"
        return f"{what}; axes show where they differ, and may leave out the beginning."
    if isinstance(shown, lines.Shown):
        assert plan.x is not None
        marks = {
            "best": " Rings mark the maximum of each line by validation.",
            "reference": " Rings mark the largest value within one percentage point of the best one at the smallest.",
        }
        what = f"{_first(_and([_bare(each) for each in shown.measures]))} of the final models against {plan.x.title}{by}."
        return what + marks.get(plan.spec.mark, "")
    if isinstance(shown, heat.Shown):
        assert plan.x is not None and plan.y is not None
        missing = any(place not in shown.cells for place in shown.asked)
        where = f"by {plan.y.title} and {plan.x.title}{by}"
        return (
            f"{_first(shown.value.title)}, of the final models {where}; darker is better, and the frame is "
            f"the best by validation.{' Hatched: no result.' if missing else ''}"
        )
    if isinstance(shown, targets.Shown):
        what = _and([_bare(each) for each in shown.measures])
        never = any(statistic is None for _, _, found in shown.lines for statistic in found)
        return (
            f"{_first(what)} until {_bare(shown.accuracy)} was first {shown.target:g} % at an evaluation."
            f"{' Never: not with every seed.' if never else ''}"
        )
    if plan.spec.kind == "sampling":
        return (
            "Probability of each client in a round, sorted, as the mean over seeds; dotted: all alike. effective: 1 / Σp², the number of "
            "equally probable clients that would be as concentrated."
        )
    if shown[0][1].kind == "characters":
        return f"How frequent the most common characters are with each client, relative to all text{by} (one seed)."
    return f"Classes of the samples of each client{by} (one seed)."


def _bare(each: Measure) -> str:
    """A title without its unit."""
    return each.title.removesuffix(f", {each.unit}") if each.unit else each.title


def _by(looks: list[Axis | None], facets: tuple[Axis, ...]) -> str:
    names = list(dict.fromkeys(each.title for each in (*looks, *facets) if each is not None))
    return f", by {_and(names)}" if names else ""


def _first(words: str) -> str:
    return words[:1].upper() + words[1:]


def _and(words: list[str] | tuple[str, ...]) -> str:
    words = list(words)
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _seeds(settings: list[Setting], cells: bool) -> str:
    numbers = sorted({len(setting.finished) for setting in settings if setting.finished})
    if not numbers:
        return ""
    if numbers == [1]:
        return "One seed (n=1), so no deviations."
    count = f"n={numbers[0]}" if len(numbers) == 1 else f"n={numbers[0]} to {numbers[-1]}"
    return f"Means over seeds ({count}); {'±' if cells else 'bands and bars'} {'is' if cells else 'are'} one standard deviation."
