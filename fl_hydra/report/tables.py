"""Tables of a section: results and costs of its settings, and tuned values; as CSV, Markdown and LaTeX."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_hydra.config import Evaluation
from fl_hydra.files import write_atomically
from fl_hydra.report.axes import AXES, Axis
from fl_hydra.report.commands import portable
from fl_hydra.report.cost import CostTable
from fl_hydra.report.latex import code, escaped, key
from fl_hydra.report.measures import Measure, delta_of, measures, privacy
from fl_hydra.report.results import Results, Setting, Statistic
from fl_hydra.report.spec import Spec
from fl_hydra.report.tuned import Search, how, searches, tuned_values
from fl_hydra.report.wording import column, figure, judged_on, listed, setting_name, spelled
from fl_hydra.runs.reading import Run
from fl_hydra.uplinks.accountant import MISSING

RESULTS = ("val/acc", "test/acc", "test/loss")
PERSONAL = ("personal/val/acc", "personal/test/acc", "personal/test/loss")
COSTS = ("round", "messages", "payload", "bytes", "samples", "flops", "server_flops", "seconds")

CLIENTS = {
    "personal/test/acc": "mean, %",
    "personal/test/acc_weighted": "by samples, %",
    "personal/test/acc_worst_tenth": "worst tenth, %",
    "personal/test/acc_deviation": "deviation, %",
    "personal/test/acc_held_out": "held out, %",
    "test/acc": "model for all, %",
    "bytes": "MB per client",
    "flops": "GFLOP of clients",
    "server_flops": "GFLOP of the server",
}
"""Columns of the table of clients, and their heads; those of which no setting has a figure are left out."""

MEANS = (
    "Figures are means ± sample standard deviations over the n seeds that finished; those of others, also of diverged runs, are in none."
)
ONE_SEED = "One seed (n=1): there is no deviation."
BEST = "Bold: the test accuracy of what is best by validation."
BOLD = "Bold: the test accuracies of settings whose validation accuracy is within one deviation of the best one."
MOST_AXES = 4
"""The most columns for axes; if more differ, one column has the settings' labels."""

MOST_HASHES = 8
"""The most hashes below a table in LaTeX; all of them are in its Markdown."""


@dataclass(frozen=True)
class Cell:
    r"""text: as Markdown shows it. bold: among the best. macros: the names of the numbers in it, for \N{...} of report.tex."""

    text: str
    bold: bool = False
    macros: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """A table. caption: one line. header, rows: of equal length. notes: lines below it. commands, hashes: of the runs behind it."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str]
    commands: Sequence[str] = ()
    hashes: Sequence[str] = ()


def write_tables(results: Results, spec: Spec, table: CostTable, studies: Sequence[Mapping[str, Any]], target: Path) -> list[Path]:
    """Write SECTION, SECTION-cost, SECTION-clients and SECTION-tuned as .csv, .md and .tex, unless empty; print a short table.

    Args:
        results: the section's.
        spec: its report.
        table: of networks and devices.
        studies: the `study.json` of its searches, and of those that its runs name.
        target: an existing folder.

    Raises:
        OSError: it cannot be written.
    """
    show(results, spec, table)
    stem = target / results.name
    known = measures(table)
    shown = _shown(results, spec, table)
    written = _write(stem, results_csv(results, shown), results_table(results, spec, table))
    if any(setting.final(known["seconds"]) for setting in results.settings):
        written += _write(stem.with_name(f"{stem.name}-cost"), costs_csv(results, table), costs_table(results, spec, table))
    if any(setting.final(known["personal/test/acc"]) for setting in results.settings):
        named = [known[name] for name in (PERSONAL[0], *CLIENTS) if any(setting.final(known[name]) for setting in results.settings)]
        written += _write(stem.with_name(f"{stem.name}-clients"), results_csv(results, named), clients_table(results, spec, table))
    found = searches(results, studies)
    values = tuned_values(found)
    if values:
        raw = [list(dataclasses.asdict(each).values()) for each in values]
        tuned = dataclasses.replace(tuned_table([(results, spec, found)]), commands=_commands(results))
        written += _write(stem.with_name(f"{stem.name}-tuned"), [list(dataclasses.asdict(values[0])), *raw], tuned)
    return written


def tuned_table(tuned: Sequence[tuple[Results, Spec, Sequence[Search]]], most: int | None = None) -> Table:
    """Tuned values of one or several sections: where they apply, and what they reached in validation; notes say how they were searched.

    most: rows of a section, at most.
    """
    rows, notes, left = [], [], []
    for results, spec, found in tuned:
        mine = []
        for each in found:
            where = listed([AXES[name].label(value) if name in AXES else f"{spelled(name)} {value}" for name, value in each.where.items()])
            for name, value in each.values.items():
                macro = tuned_key(results, each, name)
                reached = "" if each.reached is None else f"{each.reached:.4g}"
                mine.append(
                    [
                        Cell(spec.title),
                        Cell(where or "all"),
                        Cell(spelled(name)),
                        Cell(_plain(value), macros=(macro,)),
                        Cell(reached, macros=(f"{macro}/reached",) if reached else ()),
                    ]
                )
        rows += mine[:most]
        left += [results.name] if most is not None and len(mine) > most else []
        notes += [f"{spec.title if len(tuned) > 1 else 'How'}: {sentence}." for sentence in how(found)]
    header = ["section", "where", "hyper-parameter", "value", "objective reached"]
    kept = range(len(header)) if len(tuned) > 1 else range(1, len(header))
    said = ["The objective is that of the best trial. No trial has a seed of a result, or saw the test set.", *notes]
    said += [f"More rows are in {', '.join(f'{name}-tuned.csv' for name in left)}."] if left else []
    title = tuned[0][1].title if len(tuned) == 1 else "Hyper-parameters"
    return Table(f"{title}: tuned values", [header[place] for place in kept], [[row[place] for place in kept] for row in rows], said)


def tuned_key(results: Results, search: Search, name: str) -> str:
    """The macro of a tuned value."""
    where = " ".join(f"{key}={value}" for key, value in search.where.items())
    return key(results.name, "tuned", *([where] if where else []), name)


def tuned_numbers(results: Results, found: Sequence[Search]) -> dict[str, str]:
    """Tuned values, and what they reached, by the names of their macros."""
    said = {}
    for each in found:
        for name, value in each.values.items():
            said[tuned_key(results, each, name)] = _plain(value)
            if each.reached is not None:
                said[f"{tuned_key(results, each, name)}/reached"] = f"{each.reached:.4g}"
    return said


OVERVIEW = ("round", "flops", "bytes", "seconds")
"""Cost columns of the table of all sections, before those of networks."""


def overview_table(sections: Sequence[tuple[Results, Spec]], table: CostTable, cheapest: bool = True) -> Table:
    """Computation and communication of all sections, with a row for each method or optimizer: its best setting by validation.

    Args:
        sections: in the order of the rows; settings of earlier sections are not repeated.
        table: of networks; if there are more than three, the first, the middle and the last have columns. The first device is used.
        cheapest: whether each method's setting that communicates least also has a row, if it is another one.
    """
    known = measures(table)
    count = len(table.networks)
    networks = [table.networks[place] for place in sorted({0, count // 2, count - 1})] if count > 3 else list(table.networks)
    costs = [known[name] for name in (*OVERVIEW, *(network.name for network in networks))]
    rows, seen = [], []
    for results, spec in sections:
        mine = [each for each in _representatives(results, spec, known, cheapest) if {**each.config, "seed": 0} not in seen]
        seen += [{**each.config, "seed": 0} for each in mine]
        for place, setting in enumerate(mine):
            cells = [_cell(results, setting, each) for each in (known[spec.accuracy], *costs)]
            name = setting_name(results, setting, but=("K", "J"))
            said = [Cell("" if place else spec.title), Cell(name[0].upper() + name[1:])]
            workers = max(setting.config["K"], setting.config.get("data_parallel", 1))
            said += [Cell(str(workers)), Cell("" if setting.value("J") is None else str(setting.value("J")))]
            rows.append([*said, *cells, Cell(str(len(setting.finished)))])
    titles = {"flops": "GFLOP", "bytes": "MB per worker", "seconds": "computing, s"}
    titled = [titles.get(each.name) or each.title.removeprefix("time on ") for each in costs]
    header = ["section", "setting", "K", "J", "acc., %", *titled, "n"]
    header, rows, once = _without_constants(header, rows, keep=("setting", "acc., %"))
    links = "; ".join(f"{each.name}: {each.latency * 1e3:g} ms, {each.bandwidth / 1e9:g} Gb/s" for each in networks)
    devices = f", on “{table.devices[0].name}”" if table.devices[0].name != "as simulated" else ""
    and_least = ", and the one that communicates least" if cheapest else ""
    personal = [spec.title for _, spec in sections if spec.personal]
    whose = f"; in “{listed(personal)}”, the mean of clients' own models, for the first way to divide the data" if personal else ""
    notes = [
        f"Of each method the setting that is best by validation{and_least}. Test accuracy of the final model{whose}. K counts workers that "
        f"share the steps of large batches, too. GFLOP of all workers; MB (10^6 bytes): all messages, divided by the workers, averages by "
        f"{AVERAGES[table.collective]}; modelled seconds: computing alone{devices}, and with the messages on a network ({links}).",
        *once,
    ]
    return Table("Computation and communication", header, rows, notes)


AVERAGES = {"ring": "a ring", "tree": "a tree", "point_to_point": "a server", "fastest": "ring or tree, whichever is faster"}


def _representatives(results: Results, spec: Spec, known: Mapping[str, Measure], cheapest: bool) -> list[Setting]:
    """Per method (or optimizer, if one method has several) and data set: the best by validation, and the one that communicates least.

    Where clients' own models are judged, of each data set's first division alone.
    """
    groups: dict[tuple[object, ...], list[Setting]] = {}
    for setting in spec.comparable(results.drawn):
        groups.setdefault(tuple(setting.value(name) for name in ("dataset", "method", "optimizer")), []).append(setting)
    found = []
    for group in groups.values():
        top = max(group, key=lambda each: _mean(each.final(known[spec.validation])))
        sent = [(each, final.mean) for each in group if (final := each.final(known["bytes"]))]
        found.append(top)
        if cheapest and sent:
            least, mean = min(sent, key=lambda each: each[1])
            if mean < next((of_top for each, of_top in sent if each is top), 0.0):
                found.append(least)
    return found


def results_table(results: Results, spec: Spec, table: CostTable, most: int | None = None, short: bool = False) -> Table:
    """The final models of every setting; with `most`, of only that many (:func:`_foremost`), in the section's order.

    short: without samples, and, where clients' own models are judged, with the worst tenth in place of the loss.
    """
    by = measures(table)[spec.validation]
    shown = _shown(results, spec, table, short)
    subject = _subject(results, spec)
    kept = results.settings if most is None else _foremost(results, spec, subject, by)[:most]
    settings = [setting for setting in results.settings if setting in kept]
    bold = best(results, spec, by)
    header, names = _names(results, settings)
    rows = [
        [
            *(Cell(name) for name in names[place]),
            *(_cell(results, setting, each, each.name == spec.accuracy and setting in bold) for each in shown),
            Cell(str(len(setting.finished))),
            Cell(setting.state),
        ]
        for place, setting in enumerate(settings)
    ]
    header = [*header, *(each.title for each in shown), "n", "status"]
    header, rows, once = _without_constants(header, rows, keep=[each.title for each in shown if each.name.endswith("acc")])
    left = len(results.settings) - len(settings)
    notes = [*_seeds(results), *_bold(bold, settings), *once, *_of_clients(results), *_hidden(results, table), *common(results)]
    each = f"Of each {column(subject)} the best by validation, then the best of the others" if subject else "The best by validation"
    notes += [f"{each}: {len(settings)} of {len(results.settings)}; all are in {results.name}.csv."] if left else []
    return Table(f"{spec.title}: final models", header, rows, [*notes, *_missing(results)], _commands(results), hashes(settings))


def clients_table(results: Results, spec: Spec, table: CostTable) -> Table:
    """How good the models of clients are, for the mean client and the worst ones, and what they cost, with a row for each setting."""
    known = measures(table)
    settings = [setting for setting in results.settings if setting.final(known["personal/test/acc"]) or not setting.finished]
    shown = [known[name] for name in CLIENTS if any(setting.final(known[name]) for setting in settings)]
    bold = best(results, spec, known["personal/val/acc"])
    head, names = _names(results, settings)
    rows = [
        [
            *(Cell(name) for name in names[place]),
            *(_cell(results, setting, each, each.name == "personal/test/acc" and setting in bold) for each in shown),
            Cell(str(len(setting.finished))),
        ]
        for place, setting in enumerate(settings)
    ]
    header = [*head, *(CLIENTS[each.name] for each in shown), "n"]
    header, rows, once = _without_constants(header, rows, keep=[CLIENTS[each.name] for each in shown if "acc" in each.name])
    notes = [*_seeds(results), *_of_clients(results), *_bold(bold, settings), *once, *common(results), *_missing(results)]
    return Table(f"{spec.title}: models of clients", header, rows, notes, _commands(results), hashes(settings))


def _shown(results: Results, spec: Spec, table: CostTable, short: bool = False) -> list[Measure]:
    """The columns of final models: by what the section is judged, then the accuracies of the other kind of models, if there are any."""
    known = measures(table)
    own, others = (PERSONAL, RESULTS) if spec.personal else (RESULTS, PERSONAL)
    there = [name for name in others[:2] if any(setting.final(known[name]) for setting in results.settings)]
    if short and spec.personal:
        own = (*own[:2], "personal/test/acc_worst_tenth")
    return [*(known[name] for name in (*own, *there, "round", *([] if short else ["samples"]))), *_privacy(results, table)]


def _held_out(config: Mapping[str, Any]) -> str:
    """Which clients were held out, and how long they train what their method leaves to them."""
    steps = config.get("evaluation", {}).get("joining_steps", Evaluation.joining_steps)
    return f"{config['participation']['held_out']} ({steps} steps of what they keep to themselves, if anything)"


def _of_clients(results: Results) -> list[str]:
    """A note on what personal figures are of."""
    judged = [run.config for run in _finished(results) if run.rows[-1].get("personal/test/acc") is not None]
    if not judged:
        return []
    numbers = sorted({int(run.rows[-1]["personal/test/clients"]) for run in _finished(results) if "personal/test/clients" in run.rows[-1]})
    many = f" ({' to '.join(str(each) for each in dict.fromkeys((numbers[0], numbers[-1])))} clients)" if numbers else ""
    away = {_held_out(run.config) for run in _finished(results) if "personal/test/acc_held_out" in run.rows[-1]}
    apart = f" Held out are clients {', '.join(sorted(away))}, who took no part in training." if away else ""
    return [
        f"Personal figures: of each client's own model on {judged_on(judged)}. Their mean over clients with test samples{many}; by "
        f"samples: weighted by the number of these; the mean of the worst tenth of clients; and the deviation over clients.{apart}"
    ]


def _finished(results: Results) -> list[Run]:
    return [run for setting in results.drawn for run in setting.finished]


def _privacy(results: Results, table: CostTable) -> list[Measure]:
    """Epsilon, if it is known of a setting."""
    return [privacy(table)] if any(setting.final(privacy(table)) for setting in results.settings) else []


def _hidden(results: Results, table: CostTable) -> list[str]:
    """A note on what epsilon is, if runs are private."""
    deltas = sorted({delta for setting in results.drawn if (delta := delta_of(setting.config, table)) is not None})
    if not deltas:
        return []
    if not _privacy(results, table):
        return [f"{MISSING}."]
    return [
        f"epsilon: of all models of a run, for another client in place of one, at delta {listed([f'{delta:.2g}' for delta in deltas])}; "
        "accuracies and losses are not covered, as no noise is added to them."
    ]


def _bold(bold: Sequence[Setting], settings: Sequence[Setting]) -> list[str]:
    """A note on what bold figures mean; with one seed there is no deviation."""
    if not bold or len(settings) < 2:
        return []
    return [BOLD if any(len(setting.finished) > 1 for setting in bold) else BEST]


def _subject(results: Results, spec: Spec) -> Axis | None:
    """The section's subject: its methods, if it has several, else the axis of its first comparison."""
    axes = {each.name: each for each in results.axes}
    return next((axes[name] for name in ("method", *(each.axis for each in spec.compare)) if name in axes), None)


def _foremost(results: Results, spec: Spec, subject: Axis | None, by: Measure) -> list[Setting]:
    """Finished settings: first the best for each value of the subject and each data set, then the others; each by validation.

    Where clients' own models are judged, first those of each data set's first division: accuracies of others are not comparable.
    """
    early = spec.comparable(results.drawn)
    ranked = sorted(results.drawn, key=lambda setting: (setting not in early, -_mean(setting.final(by))))
    first: dict[object, Setting] = {}
    for setting in ranked if subject else ():
        first.setdefault((setting.value("dataset"), setting.value(subject.name)), setting)  # type: ignore[union-attr]
    return [*first.values(), *(setting for setting in ranked if setting not in first.values())]


def costs_table(results: Results, spec: Spec, table: CostTable) -> Table:
    """What every setting computed and sent, and its time on each network; with several devices, a row for each."""
    several = len(table.devices) > 1
    settings = results.settings
    head, names = _names(results, settings)
    columns = [*_costs(results, table), *(network.name for network in table.networks)]
    header = [*head, *(["device"] if several else []), *(measures(table)[name].title for name in columns), "n", "status"]
    rows = []
    for place, setting in enumerate(settings):
        for device in table.devices:
            known = measures(dataclasses.replace(table, devices=[device]))
            counted = setting.final(known["seconds"]) is not None or not setting.finished
            rows.append(
                [
                    *(Cell(name) for name in names[place]),
                    *([Cell(device.name)] if several else []),
                    *(_cell(results, setting, known[name]) for name in columns),
                    Cell(str(len(setting.finished))),
                    Cell(setting.state if counted else "made before runs counted all of it"),
                ]
            )
    header, rows, once = _without_constants(header, rows)
    links = ", ".join(f"{n.name} {n.latency * 1e3:g} ms + {n.bandwidth / 1e9:g} Gb/s" for n in table.networks)
    notes = [
        *_seeds(results),
        "payload: what workers and server sent; communication: with every message of the collective; MB: 10^6 bytes. Simulated time is "
        f"without a network. Averages of workers: {table.collective}. Networks: {links}.",
        *(["The server's computation is in no time."] if "server_flops" in columns else []),
        *once,
        *common(results),
        *_missing(results),
    ]
    return Table(f"{spec.title}: computation and communication", header, rows, notes, _commands(results), hashes(settings))


def _costs(results: Results, table: CostTable) -> list[str]:
    """The columns of costs; of the server's computation only where a method computes there."""
    server = any(setting.final(measures(table)["server_flops"]) for setting in results.settings)
    return [name for name in COSTS if name != "server_flops" or server]


def results_csv(results: Results, shown: Sequence[Measure]) -> list[list[object]]:
    """Raw numbers: setting, a column for each axis, then mean, deviation and n of each figure; empty if there is none."""
    axes = results.axes
    header: list[object] = ["setting", *(each.name for each in axes), *_columns(shown), "runs", "status", "hashes"]
    rows = [
        [setting.label, *(_value(each, setting) for each in axes), *_numbers(setting, shown), *_ending(setting)]
        for setting in results.settings
    ]
    return [header, *rows]


def costs_csv(results: Results, table: CostTable) -> list[list[object]]:
    """The same for costs, with a row for each device."""
    axes, names = results.axes, [*_costs(results, table), *(network.name for network in table.networks)]
    header = ["setting", *(each.name for each in axes), "device", *_columns([measures(table)[name] for name in names])]
    rows: list[list[object]] = [[*header, "runs", "status", "hashes"]]
    for setting in results.settings:
        for device in table.devices:
            known = measures(dataclasses.replace(table, devices=[device]))
            values = [_value(each, setting) for each in axes]
            rows.append([setting.label, *values, device.name, *_numbers(setting, [known[name] for name in names]), *_ending(setting)])
    return rows


def best(results: Results, spec: Spec, by: Measure) -> list[Setting]:
    """Settings within one deviation of the best on their task by a validation figure; with one seed, only the best."""
    found: list[Setting] = []
    for settings in spec.tasks(results.settings).values():
        known = [(setting, final) for setting in settings if (final := setting.final(by)) is not None]
        if known:
            top = max((final for _, final in known), key=lambda final: final.mean)
            found += [setting for setting, final in known if final.mean >= top.mean - (top.deviation or 0.0)]
    return found


def common(results: Results) -> list[str]:
    """One line on what all settings have in common."""
    told = []
    alone = all(setting.config["K"] == 1 for setting in results.settings)
    for each in AXES.values():
        if alone and each.name in ("sharding", "K", "J", "algorithm.momentum", "server", "server.lr"):
            continue
        values = {each.of(setting.config) for setting in results.settings}
        if len(values) != 1 or (value := values.pop()) is None or each.name in ("participation", "speeds", "local_steps"):
            continue
        if each.name != "N_c" or not isinstance(value, str):  # else the division says it
            told.append(f"{column(each)} {each.text(value)}")
    return [f"All: {', '.join(told)}."] if told else []


def hashes(settings: Sequence[Setting]) -> list[str]:
    """The hashes that name the runs of these settings."""
    return [run.folder.name.rpartition("-")[2] for setting in settings for run in setting.runs]


def show(results: Results, spec: Spec, table: CostTable) -> None:
    """Print a section: setting, seeds, accuracy and status."""
    from rich.console import Console
    from rich.table import Table as Shown

    judged = [each for each in _shown(results, spec, table, short=True) if each.name.endswith("/acc")]
    heads = [f"{each.name.removesuffix('/acc').replace('/', ' ')} acc %" for each in judged]
    shown = Shown("setting", "n", *heads, "status", title=results.name, title_justify="left")
    for setting in results.settings:
        accuracies = (_cell(results, setting, each).text for each in judged)
        shown.add_row(setting.label, str(len(setting.finished)), *accuracies, setting.state)
    Console(width=160).print(shown)


def as_markdown(table: Table) -> str:
    """A table in Markdown, with its notes, commands and hashes below."""
    rows = [[f"**{cell.text}**" if cell.bold and cell.text else cell.text.replace("|", r"\|") for cell in row] for row in table.rows]
    lines = ["| " + " | ".join(row) + " |" for row in (list(table.header), ["---"] * len(table.header), *rows)]
    text = f"**{table.caption}**\n\n" + "\n".join(lines) + "\n"
    text += "".join(f"\n{note}\n" for note in table.notes)
    if table.commands:
        text += "\nMade by\n\n" + "".join(f"    {command}\n" for command in table.commands)
    return text + (f"\nRuns: {' '.join(table.hashes)}\n" if table.hashes else "")


def as_latex(table: Table, name: str, starred: bool = True, macros: bool = False) -> str:
    r"""A LaTeX float with booktabs, spanning both columns if `starred`. It needs booktabs, array, and a class with \caption.

    macros: whether results are macros \N{...}, defined in numbers.tex, or written out.
    """
    wide = starred and _least(table) > COLUMN
    kept, columns, size = _fitted(table, PAGE if wide else COLUMN)
    left = [title for place, title in enumerate(table.header) if place not in kept]
    rows = [" & ".join(_latex(row[place], macros) for place in kept) for row in table.rows]
    kind, width = ("table*", r"\textwidth") if wide else ("table", r"\columnwidth")
    notes = [*table.notes, *([f"No room for: {', '.join(left)}."] if left else [])]
    below = [escaped(" ".join(notes))]
    if table.commands:
        below.append("Made by " + "; ".join(code(command) for command in table.commands[-2:]) + ".")
    if table.hashes:
        short = ", ".join(each[:6] for each in table.hashes[:MOST_HASHES])
        rest = len(table.hashes) - MOST_HASHES
        below.append(rf"Runs \texttt{{{short}}}" + (f" and {rest} more, in the Markdown of this table." if rest > 0 else "."))
    body = "\n".join(
        [
            rf"\begin{{tabular}}{{@{{}}{''.join(columns)}@{{}}}}",
            r"\toprule",
            " & ".join(_head(table.header[place], columns[at]) for at, place in enumerate(kept)) + r" \\",
            r"\midrule",
            *(row + r" \\" for row in rows),
            r"\bottomrule",
            r"\end{tabular}",
        ]
    )
    return (
        f"\\begin{{{kind}}}[tbp]\n\\centering\n\\caption{{{escaped(table.caption)}}}\n\\label{{tab:{name}}}\n"
        f"\\{size}\\setlength{{\\tabcolsep}}{{{GAP / 2:g}pt}}\n{body}\n\\par\\vspace{{2pt}}\n"
        f"\\begin{{minipage}}{{{width}}}\\scriptsize\\raggedright\n" + "\n".join(below) + f"\n\\end{{minipage}}\n\\end{{{kind}}}\n"
    )


COLUMN, PAGE = 252.0, 516.0
"""Widths in points of a column and of a two-column page in IEEE style."""

SIZES = {"footnotesize": 8.0, "scriptsize": 7.0}
"""Font sizes in points. Smaller ones are unreadable in print: tables that are too wide get narrower text columns, then fewer columns."""

GAP = 7.0
"""Points between columns."""

NARROWEST = 55.0
"""The smallest width in points of a text column that is broken into lines."""


def _fitted(table: Table, width: float) -> tuple[list[int], list[str], str]:
    """The columns that fit, their LaTeX specifications, and the font size."""
    kept = list(range(len(table.header)))
    while True:
        for size, points in SIZES.items():
            columns = {place: _points(table, place, points) for place in kept}
            words = [place for place in kept if not _is_numeric(table, place)]
            if _sum(columns) <= width:
                return kept, ["l" if place in words else "r" for place in kept], size
        narrow = dict(columns)
        while _sum(narrow) > width and any(narrow[place] > NARROWEST for place in words):
            widest = max(words, key=lambda place: narrow[place])
            narrow[widest] = max(NARROWEST, narrow[widest] - 5)
        figures = [place for place in kept if any(row[place].macros for row in table.rows)]
        if _sum(narrow) <= width or len(figures) < 2:
            return kept, [_set(place in words, narrow[place], columns[place]) for place in kept], size
        kept.remove(figures[-1])


def _set(words: bool, given: float, wanted: float) -> str:
    return "r" if not words else "l" if given >= wanted else rf">{{\raggedright\arraybackslash}}p{{{given:g}pt}}"


def _sum(columns: Mapping[int, float]) -> float:
    return sum(columns.values()) + GAP * (len(columns) - 1)


def _least(table: Table) -> float:
    """The table's width in the smallest font, with all columns and unbroken words."""
    return _sum({place: _points(table, place, SIZES["scriptsize"]) for place in range(len(table.header))})


def _is_numeric(table: Table, place: int) -> bool:
    return all(_numeric(row[place].text) for row in table.rows)


def _points(table: Table, place: int, size: float) -> float:
    """A column's width in points, in Times of this size; slightly overestimated."""
    heads = _lines(table.header[place])
    return max(_ems(text) for text in (*heads, *(row[place].text for row in table.rows))) * size * 1.04 + 0.5


def _ems(text: str) -> float:
    """A rough width of bold Times letters, in units of the font size."""
    return sum(1.35 if each == "±" else 0.28 if each in " .,;:'|il" else 0.5 if each.isdigit() or each.islower() else 0.72 for each in text)


def _lines(title: str) -> list[str]:
    """A column's header in two lines of about the same length, if it has several words."""
    words = title.split(" ")
    cuts = [(" ".join(words[:place]), " ".join(words[place:])) for place in range(1, len(words))]
    return list(min(cuts, key=lambda cut: max(map(len, cut)))) if cuts else [title]


def _head(title: str, set_as: str) -> str:
    if "p{" in set_as:
        return escaped(title)
    lines = r"\\".join(map(escaped, _lines(title)))
    return rf"\shortstack[{set_as}]{{{lines}}}" if " " in title else lines


def _latex(cell: Cell, macros: bool) -> str:
    text = r" $\pm$ ".join(rf"\N{{{name}}}" for name in cell.macros) if macros and cell.macros else escaped(cell.text)
    return rf"\textbf{{{text}}}" if cell.bold else text


def _write(stem: Path, raw: Sequence[Sequence[object]], table: Table) -> list[Path]:
    buffer = io.StringIO()
    csv.writer(buffer).writerows(["" if value is None else value for value in row] for row in raw)
    written = []
    for suffix, text in ((".csv", buffer.getvalue()), (".md", as_markdown(table)), (".tex", as_latex(table, stem.name))):
        path = stem.with_name(stem.name + suffix)
        write_atomically(path, text.encode())
        written.append(path)
    return written


def _names(results: Results, settings: Sequence[Setting]) -> tuple[list[str], list[list[str]]]:
    """Columns that name settings: one per axis, or the label if there are many axes or they do not distinguish settings."""
    axes = results.axes
    named = [[each.text(each.of(setting.config)) for each in axes] for setting in settings]
    if 0 < len(axes) <= MOST_AXES and len({tuple(row) for row in named}) == len(settings):
        return [column(each) for each in axes], named
    return ["setting"], [[setting.label] for setting in settings]


def _without_constants(
    header: Sequence[str], rows: Sequence[Sequence[Cell]], keep: Sequence[str] = ()
) -> tuple[list[str], list[list[Cell]], list[str]]:
    """A table without columns that are the same in every row, and a line with their values. A single row keeps all columns."""
    same = [
        len(rows) > 1 and header[place] not in keep and len({row[place].text for row in rows}) == 1 and place > 0
        for place in range(len(header))
    ]
    told = [f"{title} {rows[0][place].text}" for place, title in enumerate(header) if same[place] and rows[0][place].text]
    kept = [place for place, constant in enumerate(same) if not constant]
    once = [f"In all rows: {'; '.join(told)}."] if told else []
    return [header[place] for place in kept], [[row[place] for place in kept] for row in rows], once


def _seeds(results: Results) -> list[str]:
    numbers = [len(setting.finished) for setting in results.drawn]
    return ([MEANS] if max(numbers, default=0) > 1 else []) + ([ONE_SEED] if 1 in numbers else [])


def _missing(results: Results) -> list[str]:
    runs = [run for setting in results.settings for run in setting.runs]
    lines = [f"{run.folder.name}: {run.status}{f' ({run.why})' if run.why else ''}" for run in runs if not run.finished]
    more = [f"and {len(lines) - 6} more"] if len(lines) > 6 else []
    return [f"In no mean: {'; '.join([*lines[:6], *more])}."] if lines else []


def _commands(results: Results) -> list[str]:
    return list(dict.fromkeys(portable(str(command)) for command in results.description.get("commands", [])))


def _mean(statistic: Statistic | None) -> float:
    return -math.inf if statistic is None else statistic.mean


def _cell(results: Results, setting: Setting, of: Measure, bold: bool = False) -> Cell:
    """A figure, `94.15 ± 1.18`; empty if there is none."""
    statistic = setting.final(of)
    if statistic is None:
        return Cell("")
    mean, deviation = figure(statistic, of)
    name = key(results.name, setting.label, of.name)
    if deviation is None:
        return Cell(mean, bold, (f"{name}/mean",))
    return Cell(f"{mean} ± {deviation}", bold, (f"{name}/mean", f"{name}/deviation"))


def _columns(shown: Sequence[Measure]) -> list[str]:
    return [f"{each.name} {what}" for each in shown for what in ("mean", "deviation", "n")]


def _numbers(setting: Setting, shown: Sequence[Measure]) -> list[object]:
    finals = [setting.final(each) for each in shown]
    return [value for final in finals for value in ((final.mean, final.deviation, final.n) if final else (None, None, 0))]


def _ending(setting: Setting) -> list[object]:
    return [len(setting.runs), setting.state, " ".join(hashes([setting]))]


def _value(of: Axis, setting: Setting) -> object:
    """A number unchanged; None by its name, such as iid."""
    value = of.of(setting.config)
    return of.text(value) if value is None or isinstance(value, str | bool) else value


def _plain(value: object) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _numeric(text: str) -> bool:
    return not text or text.replace(" ± ", "").replace(".", "").replace("-", "").replace("e", "").isdigit()
