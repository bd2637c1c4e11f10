"""A section's results in generated sentences: no causes, no claim without a test, nothing about runs that do not exist."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fl_hydra.files import write_atomically
from fl_hydra.report.axes import axis, in_order
from fl_hydra.report.cost import CostTable
from fl_hydra.report.latex import escaped, join, key
from fl_hydra.report.marks import POINT, best_of, furthest, lines, reachable, reference
from fl_hydra.report.measures import Measure, measure, measures, privacy, validation
from fl_hydra.report.results import Results, Setting, Statistic, narrowed
from fl_hydra.report.spec import FigureSpec, Spec, Task
from fl_hydra.report.statistics import FEWEST, MOST_SEEDS, Difference, differences, largest
from fl_hydra.report.wording import DATA, MODELS, bare, capital, column, figure, listed, phrase, plain_name, setting_name


@dataclass(frozen=True)
class Number:
    """A number in a sentence. name: of its macro. text: as printed."""

    name: str
    text: str


Sentence = tuple[str | Number, ...]


def write_sentences(results: Results, spec: Spec, table: CostTable, target: Path) -> list[Path]:
    """Write SECTION-text.md: the section's questions, each with its computed answer.

    Raises:
        OSError: it cannot be written.
    """
    found = answers(results, spec, table)
    parts = [f"# {spec.title}"]
    for number, question in enumerate(["", *spec.questions]):
        parts += [f"## {question}"] if question else []
        parts += [" ".join(map(as_text, paragraph)) for asked, paragraph in found if asked == number]
    path = target / f"{results.name}-text.md"
    write_atomically(path, ("\n\n".join(parts) + "\n").encode())
    return [path]


def as_text(sentence: Sentence) -> str:
    """A sentence as plain text."""
    return "".join(part if isinstance(part, str) else part.text for part in sentence)


def as_macros(sentence: Sentence) -> str:
    """A sentence for LaTeX, with a macro for each number."""
    return "".join(escaped(part) if isinstance(part, str) else rf"\N{{{part.name}}}" for part in sentence)


def sentences(results: Results, spec: Spec, table: CostTable) -> list[list[Sentence]]:
    """All paragraphs of :func:`answers`."""
    return [paragraph for _, paragraph in answers(results, spec, table)]


def answers(results: Results, spec: Spec, table: CostTable) -> list[tuple[int, list[Sentence]]]:
    """Paragraphs, each with the number of the question that it answers; 0: of no particular question.

    They state which runs there are, the best by validation, each comparison, what figures mark, and the cost of reaching an accuracy.
    """
    said = [(0, _there(results)), (1, _best(results, spec, table))]
    if results.drawn:
        found = differences(results, spec.compare, table)
        for number, comparison in enumerate(spec.compare, 1):
            mine = [each for each in found if each.comparison is comparison]
            said.append((comparison.question, _comparison(results, mine, len(found), number)))
        said += [
            (_asked(spec, figure), _marked(results, figure, table)) for figure in spec.figures if figure.kind == "lines" and figure.mark
        ]
        last = len(spec.questions)
        said += [(last, _beside(results, figure, table)) for figure in spec.figures if figure.kind == "lines" and figure.beside]
        asked = spec.reaching or (spec.compare[-1].question if spec.compare else 1)
        said.append((asked, _reached(results, spec, table)))
    return [(number if spec.questions else 0, paragraph) for number, paragraph in said if paragraph]


def _there(results: Results) -> list[Sentence]:
    runs = [run for setting in results.settings for run in setting.runs]
    finished = sum(run.finished for run in runs)
    unknown: list[Sentence] = []
    if results.unknown:
        unknown = [(f"Of {_count(results.unknown, 'further run')} only the names are known, so comparisons with them are not counted.",)]
    if not finished:
        return [("No run of this section has finished, so that nothing can be said.",), *unknown]
    seeds = sorted({len(setting.finished) for setting in results.drawn})
    of = Number(key(results.name, "runs"), str(finished))
    with_seeds = f"{seeds[0]} to {_count(seeds[-1], 'seed')}" if len(seeds) > 1 else _count(seeds[0], "seed")
    each = " each" if len(results.drawn) > 1 else ""
    have = " run has" if finished == 1 else " runs have"
    first: Sentence = (of, f"{have} finished, of {_count(len(results.drawn), 'setting')} with {with_seeds}{each}.")
    said = [first, *_shared(results), *unknown]
    if finished == len(runs):
        return said
    rest = len(runs) - finished
    begun = f"The other {rest} of {len(runs)} runs are" if rest > 1 else "One more run is"
    return [*said, (f"{begun} in no figure: ", _ends(results), ".")]


SHARED = ("dataset", "model", "sharding", "optimizer", "optimizer.lr", "optimizer.weight_decay", "scheduler", "batch_size", "K", "J")
"""What readers want to know about runs besides the axes of comparison."""


def _shared(results: Results) -> list[Sentence]:
    """What all settings have in common; the axes show what differs."""
    configurations = [setting.config for setting in results.drawn]
    alone = all(config["K"] == 1 for config in configurations)
    told = []
    for name in SHARED:
        value, *others = dict.fromkeys(axis(name).of(config) for config in configurations)
        if not others and value is not None and not (alone and name in ("sharding", "K", "J")):
            words = {"dataset": DATA, "model": MODELS}.get(name, {})
            told.append(words.get(str(value)) or phrase(axis(name), value))
    budgets = {int(config["budget"]) for config in configurations}
    told += [f"{budget:,} training samples" for budget in budgets if len(budgets) == 1]
    shared = {config.get("data_parallel", 1) for config in configurations}
    if len(shared) == 1 and (workers := shared.pop()) > 1:
        told.append(f"each batch shared by {workers} workers")
    cohorts = {(config["m"], config["K"]) for config in configurations}
    if len(cohorts) == 1 and (cohort := cohorts.pop())[0] < cohort[1]:
        told.append(f"{cohort[0]} of the {cohort[1]} clients in a round")
    return [(f"{'It has' if len(configurations) == 1 else 'Common to all'}: {', '.join(told)}.",)] if told else []


def _ends(results: Results) -> str:
    states = [run.status for setting in results.settings for run in setting.runs if not run.finished]
    return ", ".join(f"{states.count(status)} {status}" for status in dict.fromkeys(states))


def _best(results: Results, spec: Spec, table: CostTable) -> list[Sentence]:
    """The best setting of each task by validation, and its test accuracy."""
    accuracy, by, said = measure(spec.accuracy, table), measure(spec.validation, table), []
    tasks = spec.tasks(results.drawn)
    for task, settings in tasks.items():
        ranked = [(setting, final) for setting in settings if (final := setting.final(by))]
        tested = [setting.final(accuracy) for setting, _ in ranked]
        apart, where = _apart(task, tasks)
        if len(ranked) < 2:
            for (setting, _), test in zip(ranked, tested, strict=True):
                if test:
                    told = _figure(results, setting, accuracy, test)
                    said.append((capital(f"{setting_name(results, setting)} ends at a {bare(accuracy)} of "), *told, "."))
            continue
        top, final = max(ranked, key=lambda each: each[1].mean)
        level = sum(each.mean == final.mean for _, each in ranked)
        test = top.final(accuracy)
        begun = f"Best by validation{where} is "
        if level == len(ranked):
            begun = f"By validation{where} all {level} settings are level; the first is "
        elif level > 1:
            begun = f"Best by validation{where} are {level} settings that are level; the first is "
        sentence: list[str | Number] = [
            f"{begun}{setting_name(results, top, but=DIVISIONS if spec.personal else ())}, with a {bare(by)} of "
        ]
        sentence += _figure(results, top, by, final)
        if test:
            sentence += [f" and a {bare(accuracy)} of ", *_figure(results, top, accuracy, test)]
        near = sum(each.mean >= final.mean - (final.deviation or 0.0) for _, each in ranked) - level
        if near:
            of = f" of the other {len(ranked) - level}" if near < len(ranked) - level else " more"
            macro = Number(key(results.name, *apart, "near best"), str(near))
            sentence += ["; ", macro, f"{of} {'are' if near > 1 else 'is'} within one deviation of it"]
        said.append((*sentence, "."))
    return said


DIVISIONS = ("sharding", "N_c")
"""Axes that a task's name tells."""


def _apart(task: Task, tasks: Collection[Task]) -> tuple[list[str], str]:
    """What tells a task from the others, and these words in a sentence, as ` on Digits with N_c=2`; nothing if there is only one."""
    dataset, division = (len({each[place] for each in tasks}) > 1 for place in (0, 1))
    where = f" on {axis('dataset').text(task[0])}" if dataset else ""
    where += f" with {task[1] if '=' in task[1] else f'the {task[1]} division'}" if division else ""
    return [task[place] for place, differs in enumerate((dataset, division)) if differs], where


def _asked(spec: Spec, figure: FigureSpec) -> int:
    """The question of the comparison along the figure's axis."""
    return next((each.question for each in spec.compare if each.axis == figure.x), 1)


def _marked(results: Results, figure: FigureSpec, table: CostTable) -> list[Sentence]:
    """What a figure marks on its lines: how far each matches the reference, or where each is best by validation."""
    look, found = lines(results, figure)
    x, of = axis(figure.x), measure(figure.y[0], table)
    if not found:
        return []
    name = key(results.name, figure.name)
    others = [each.name for each in results.axes if each not in look]
    named = [setting_name(results, line[0], but=others) for line in found]
    if figure.mark == "best":
        marked = [best_of(line, validation(of, table)) for line in found]
        begun, none = f"Best {x.title} by validation: ", "nothing"
    else:
        settings = narrowed(results.drawn, figure.where)
        known = reference(settings, x, of)
        if known is None:
            return []
        marked = [furthest(line, settings, x, of) for line in found]
        first = x.text(known[0].value(x.name))
        begun = (
            f"Largest {x.title} whose mean {bare(of)} is within {POINT:g} point of the best one at {first} "
            f"({setting_name(results, known[0])}): "
        )
        none = f"not even {first}"
    held: dict[str, list[str]] = {}
    for line, setting in zip(named, marked, strict=True):
        held.setdefault(none if setting is None else x.text(setting.value(x.name)), []).append(line)
    parts: list[str | Number] = []
    order = [x.text(value) for value in in_order([setting.value(x.name) for setting in results.settings])]
    for place, (value, who) in enumerate(sorted(held.items(), key=lambda each: order.index(each[0]) if each[0] in order else len(order))):
        told: str | Number = value if value == none else Number(f"{name}/{key(who[0])}", value)
        everyone = len(held) == 1 and len(who) > 1
        parts += ["; " if place else "", told, " for all" if everyone else f" for {', '.join(who)}"]
    return [(begun, *parts, ".")]


def _beside(results: Results, figure: FigureSpec, table: CostTable) -> list[Sentence]:
    """The ranges of a figure over the section's settings and over another section's; without a test, as their data differ."""
    of = measure(figure.y[0], table)
    told: list[str | Number] = []
    for section, settings in (("", results.drawn), (figure.beside, results.others.get(figure.beside, ()))):
        known = [(setting, final) for setting in settings if (final := setting.final(of))]
        if not known:
            return []
        low, high = (choose(known, key=lambda each: each[1].mean) for choose in (min, max))
        data = listed([axis("dataset").text(name) for name in dict.fromkeys(setting.value("dataset") for setting, _ in known)])
        told += [f"; on {data}, in section {section}, from " if section else f"{capital(bare(of))} on {data} goes from "]
        told += [
            *_figure(results, low[0], of, low[1]),
            f" ({low[0].label}) to ",
            *_figure(results, high[0], of, high[1]),
            f" ({high[0].label})",
        ]
    return [(*told, ".")]


def _comparison(results: Results, mine: Sequence[Difference], declared: int, number: int) -> list[Sentence]:
    """How many differences are significant, the largest, the largest significant one if it is another, and what would decide others."""
    known = [each for each in mine if each.known]
    if not known:
        return []
    comparison, of = known[0].comparison, known[0].measure
    held = [each for each in known if each.holds]
    base = {each.other.value(comparison.axis) for each in known}
    sides = {each.setting.value(comparison.axis) for each in known}
    told = [f"with section {comparison.beside}"] if comparison.beside else []
    told += [f"against {phrase(axis(comparison.axis), base.pop())}"] if len(base) == 1 and len(known) > 1 else []
    only = comparison.only and len(sides) == 1
    what = capital(phrase(axis(comparison.axis), sides.pop())) if only else f"Compared by {column(axis(comparison.axis))}"
    same = [column(each) for each in results.axes if each.name in comparison.within]
    where = [each.name for each in results.axes if each.name in comparison.where]
    told += [f"at the same {listed(same)}"] if same else []
    told += [f"with {listed([phrase(axis(each), known[0].setting.value(each)) for each in where])}"] if where else []
    name = key(results.name, f"compare{number}")
    begun = f"{what}{', ' if told else ''}{', '.join(told)}: "
    count, several = Number(f"{name}/differences", str(len(known))), len(known) > 1
    figures = f" difference{'s' if several else ''} in {bare(of)} "
    first = known[int(largest([each.size for each in known]))]
    if not first.size:
        return [(begun, count, f" pair{'s do' if several else ' does'} not differ in mean {bare(of)}.")]
    said: list[Sentence]
    if all(each.n < 2 for each in known):
        many = "are undecided, and one seed does not tell how many would decide them."
        said = [(begun, count, figures, many if several else "is undecided, and one seed does not tell how many would decide it.")]
    else:
        hold = Number(f"{name}/hold", str(len(held)))
        all_declared = Number(key(results.name, "declared"), str(declared))
        holds = "holds" if len(held) == 1 else "hold"
        comparisons = f" comparison{'s' if declared > 1 else ''})."
        said = [(begun, hold, " of ", count, f"{figures}{holds} (p adjusted over ", all_declared, comparisons)]
    said.append((f"The {'largest' if len(known) > 1 else 'difference'} is ", *_difference(results, first, f"{name}/largest")))
    if held and first not in held:
        said.append(("The largest that holds is ", *_difference(results, held[int(largest([each.size for each in held]))], f"{name}/held")))
    needed = [each.seeds for each in known if not each.holds and each is not first and each.seeds is not None]
    if needed:
        fewest = Number(f"{name}/fewest seeds", str(max(FEWEST, min(needed))))
        most = Number(f"{name}/most seeds", str(max(needed)))
        said.append(
            (
                f"Of the others that are undecided, {len(needed)} would take ",
                *((fewest, " to ", most) if fewest.text != most.text else (most,)),
                " seeds of each side, if they are as observed.",
            )
        )
    return said


def _difference(results: Results, each: Difference, name: str) -> Sentence:
    """One side against the other: the difference, both figures, and whether it is significant; with one seed, that this is unknown."""
    assert each.mine is not None and each.others is not None
    points = " points" if each.measure.unit == "%" else ""
    compared = axis(each.comparison.axis)
    alone = all(of.of(each.setting.config) == of.of(each.other.config) for of in results.axes if of.name != compared.name)
    other = phrase(compared, each.other.value(compared.name)) if alone else setting_name(results, each.other)
    sentence: list[str | Number] = [f"{setting_name(results, each.setting)} against {other}: "]
    sentence += [Number(f"{name}/difference", f"{each.size:+.{each.measure.digits}f}"), f"{points} ("]
    sentence += [
        *_figure(results, each.setting, each.measure, each.mine),
        ", against ",
        *_figure(results, each.other, each.measure, each.others),
    ]
    if each.adjusted is not None:
        below = each.adjusted < 1e-4
        sentence += ["; adjusted p ", "below " if below else "= ", Number(f"{name}/p", "0.0001" if below else f"{each.adjusted:.4f}")]
    sentence.append(")")
    if each.holds:
        return (*sentence, "; it holds.")
    if each.n < 2:
        return (*sentence, ".")
    sentence.append("; it is undecided")
    if each.p is None:
        return (*sentence, ": seeds do not differ at all, so that there is no test.")
    if each.seeds is None:
        return (*sentence, f", and would take more than {MOST_SEEDS} seeds of each side, if it is as observed.")
    return (
        *sentence,
        ", and would take about ",
        Number(f"{name}/seeds", str(max(each.seeds, each.n + 1))),
        " seeds of each side, if it is as observed.",
    )


def _reached(results: Results, spec: Spec, table: CostTable) -> list[Sentence]:
    """The cost of reaching an accuracy on each task: bytes and seconds if workers send anything, else epochs."""
    known, said = measures(table), []
    accuracy = known[spec.accuracy]
    tasks = spec.tasks(results.drawn)
    named = next((figure.target for figure in spec.figures if figure.target is not None), None)
    for task, settings in tasks.items():
        target = named if named is not None and len(tasks) == 1 else reachable(settings, accuracy)
        if target is None:
            continue
        apart, where = _apart(task, tasks)
        name = key(results.name, *apart, "target")
        sends = any((final := setting.final(known["bytes"])) and final.mean > 0 for setting in settings)
        slowest = table.networks[-1].name
        costs = [known["bytes"], *([known[slowest]] if len(tasks) < 3 else [])] if sends else [known["epoch"]]
        for place, x in enumerate(costs):
            said += _to_reach(results, spec, settings, x, accuracy, target, name, where if not place else None)
    return said


def _to_reach(
    results: Results, spec: Spec, settings: Sequence[Setting], x: Measure, y: Measure, target: float, name: str, where: str | None
) -> list[Sentence]:
    """The lowest and the highest cost of any setting; where: the target's description, the first time."""
    reached = [(setting, found) for setting in settings if (found := setting.reached(x, target, y))]
    if not reached:
        return []
    least, most = (choose(reached, key=lambda each: each[1].mean) for choose in (min, max))
    named = partial(setting_name, results, but=DIVISIONS if spec.personal else ())
    said: list[str | Number] = []
    if where is not None:
        said = [f"A {bare(y)} of ", Number(name, f"{target:g}"), f" %{where} was reached at an evaluation, with every seed"]
        counted: Sentence = (", by ", Number(f"{name}/{key(x.name)}/reached", str(len(reached))), f" of {len(settings)} settings")
        said += [*(counted if len(settings) > 1 else ()), ". "]
    what, unit, place = _unit(x, "client" if any(setting.config["m"] < setting.config["K"] for setting in settings) else "worker")
    taken = Number(f"{name}/{key(x.name)}/least", figure(least[1], x)[0])
    if len(reached) > 1 and most[1].mean > least[1].mean:
        said += [f"{capital(named(least[0]))} took the least {what}{place}, ", taken, unit]
        said += [f", and {named(most[0])} the most, "]
        said += [Number(f"{name}/{key(x.name)}/most", figure(most[1], x)[0]), unit, "."]
    else:
        who = "All of these" if len(reached) > 1 else capital(named(least[0]))
        said += [f"{who} took ", taken, f"{unit}{place}."]
    return [tuple(said)]


def _unit(x: Measure, who: str) -> tuple[str, str, str]:
    """The quantity, its unit, and where it was measured, as text."""
    if x.name == "bytes":
        return "communication", f" MB per {who}", ""
    return ("training", " epochs", "") if x.name == "epoch" else ("time", " s", f" on the network {x.name}, computing included")


def _figure(results: Results, setting: Setting, of: Measure, statistic: Statistic) -> list[str | Number]:
    """`94.15 ± 1.18 %, n=3`, with the macros that the figures of every table have."""
    name, unit = key(_home(results, setting), setting.label, of.name), f" {of.unit}" if of.unit else ""
    mean, deviation = figure(statistic, of)
    said: list[str | Number] = [Number(f"{name}/mean", mean)]
    if deviation is not None:
        said += [" ± ", Number(f"{name}/deviation", deviation)]
    return [*said, f"{unit}, n=", Number(f"{name}/n", str(statistic.n))]


def _home(results: Results, setting: Setting) -> str:
    """The section to which a setting belongs; another section has the same size."""
    size = results.name.removeprefix(plain_name(results.name))
    return next((name + size for name, theirs in results.others.items() if any(each is setting for each in theirs)), results.name)


def numbers(results: Results, said: Sequence[Sequence[Sentence]], table: CostTable) -> dict[str, str]:
    """Every number of the section by the name of its macro: final figures and costs of all settings, and the numbers in sentences.

    Raises:
        UserError: two settings have the same name but different figures.
    """
    found: dict[str, str] = {}
    for setting in results.drawn:
        for of in (*measures(table).values(), privacy(table)):
            if statistic := setting.final(of):
                join(found, {part.name: part.text for part in _figure(results, setting, of, statistic) if isinstance(part, Number)})
    for sentence in itertools.chain.from_iterable(said):
        for part in sentence:
            if isinstance(part, Number):
                join(found, {part.name: part.text})
    return found


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"
