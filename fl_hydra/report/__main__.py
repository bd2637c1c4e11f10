"""`python -m fl_hydra.report SECTION ...`: figures and tables of the named sections, or of all; `--list` shows every run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from fl_hydra.errors import UserError, require
from fl_hydra.exits import USAGE_ERROR, framed
from fl_hydra.files import make_folder
from fl_hydra.paths import OUTPUTS
from fl_hydra.report.cost import TABLE, CostTable, read_table
from fl_hydra.report.figures import captions, draw_figures, draw_runs
from fl_hydra.report.page import write_page
from fl_hydra.report.paper import write_paper
from fl_hydra.report.results import Results, Setting
from fl_hydra.report.runs import not_in_means, told_from
from fl_hydra.report.sentences import write_sentences
from fl_hydra.report.spec import Spec
from fl_hydra.report.tables import write_tables
from fl_hydra.report.tuned import section_studies
from fl_hydra.report.wording import plain_name
from fl_hydra.runs.describing import description_file, read_description
from fl_hydra.runs.finding import find_run
from fl_hydra.runs.listing import listed, print_runs
from fl_hydra.runs.reading import Run, read_run
from fl_hydra.runs.sections import section_file, section_runs, sections


def main() -> None:
    """Write figures, tables and sentences of each section into `report/`; of all sections, index.html and report.tex too."""
    framed(_report)


def _report() -> None:
    parser = argparse.ArgumentParser(prog="python -m fl_hydra.report", description=main.__doc__)
    parser.add_argument("section", nargs="*", help="the section=NAME that its runs were trained with; all sections if none is named")
    parser.add_argument("--outputs", type=Path, default=OUTPUTS, help="the folder of the runs, as outputs= of train.py; the project's own")
    parser.add_argument("--cost", type=Path, default=TABLE, help="networks and devices to compute times for; conf/cost.yaml if not given")
    parser.add_argument("--track", choices=("a", "b"), help="the sections of one track alone, in report.tex")
    parser.add_argument("--runs", nargs="+", metavar="RUN", help="draw these runs instead, by name, hash or folder")
    parser.add_argument("--list", action="store_true", help="list every run in the outputs folder")
    parser.error = _refuse  # type: ignore[method-assign]  # the default prints several lines of usage
    arguments = parser.parse_intermixed_args()
    outputs: Path = arguments.outputs
    names: list[str] = []
    for word in arguments.section:  # in the syntax of train.py
        key, equals, value = word.partition("=")
        require(not equals or key in ("outputs", "section"), f"{word}: a report has no such key; it takes names of sections and outputs=")
        if equals and key == "outputs":
            outputs = Path(value)
        else:
            names.append(value or key)
    outputs = outputs.expanduser()
    require(outputs.is_dir(), f"outputs={outputs}: there is no such folder")
    if arguments.list:
        print_runs(listed(outputs))
        return
    table = read_table(arguments.cost.expanduser())
    if arguments.runs:
        require(not names and arguments.track is None, "--runs draws runs of any section; leave sections and --track out")
        _report_runs(arguments.runs, outputs, table)
        return
    reported, mistakes = [], 0
    with _writing():
        for section in names or sections(outputs):
            try:
                results, spec, written = write_section(section, outputs, table)
                reported.append((results, spec))
                for path in written:
                    print(f"wrote {path}")
            except UserError as error:
                print(f"error: {error}", file=sys.stderr)
                mistakes += 1
        if reported and (not names or arguments.track):
            for path in _write_whole(reported, table, outputs, arguments.track):
                print(f"wrote {path}")
    sys.exit(USAGE_ERROR if mistakes else 0)


@contextmanager
def _writing() -> Iterator[None]:
    """Turn a failure to write a file into a one-line error."""
    try:
        yield
    except OSError as error:
        where = error.filename or "the report"
        raise UserError(f"{where} cannot be written ({error.strerror or error}); fix that, or choose outputs=") from error


def _refuse(message: str) -> NoReturn:
    raise UserError(f"{message}; a report takes names of sections, --outputs, --cost, --track, --runs and --list")


def write_section(section: str, outputs: Path, table: CostTable) -> tuple[Results, Spec, list[Path]]:
    """Report a section, with a line for each run that is in no mean; returns its results, its spec, and the files written.

    Raises:
        UserError: none of its runs has ended.
    """
    folders, strange = told_from(section_runs(section, outputs), outputs)
    if strange:
        print(f"{section}: {section_file(section, outputs)} is damaged: {strange} of its lines name no run", file=sys.stderr)
    runs = [read_run(folder) for folder in folders]
    for line in not_in_means(runs):
        print(f"in no mean of {section}: {line}", file=sys.stderr)
    require(any(run.rows for run in runs), f"section={section}: {_nothing(runs)}")
    target = outputs / "report"
    make_folder(target)
    results = Results.of(section, runs, read_description(section, outputs))
    spec = _spec(results, section, outputs, table)
    results = replace(results, studies=section_studies(results, outputs), others=_beside(section, spec, outputs))
    written = [
        *draw_figures(results, spec, table, target),
        *write_tables(results, spec, table, results.studies, target),
        *write_sentences(results, spec, table, target),
    ]
    return results, spec, written


def _beside(section: str, spec: Spec, outputs: Path) -> dict[str, Sequence[Setting]]:
    """Settings of the other sections of the same size that figures and comparisons show, as far as they have been trained."""
    size = section.removeprefix(plain_name(section))
    found = {}
    named = {figure.beside for figure in spec.figures} | {comparison.beside for comparison in spec.compare}
    for name in sorted(named - {""}):
        if name + size in sections(outputs):
            runs = [read_run(folder) for folder in section_runs(name + size, outputs)]
            found[name] = Results.of(name, runs, read_description(name + size, outputs)).settings
    return found


def _nothing(runs: Sequence[Run]) -> str:
    """Why there is nothing to report."""
    if not runs:
        return "its list names no run; train some with it"
    if all(run.status == "missing" for run in runs):
        return f"none of its {len(runs)} runs has begun, or their folders were removed; train them"
    return f"none of its {len(runs)} runs has ended; train them first"


def _spec(results: Results, section: str, outputs: Path, table: CostTable) -> Spec:
    """How to show the section, as recorded by its sweep; missing axes that it names are reported.

    Raises:
        UserError: something in it is invalid.
    """
    file = description_file(section, outputs)
    block = results.description.get("report")
    if not results.description and file.exists():
        print(f"{section}: {file} is damaged; it is drawn as a grid without a report block", file=sys.stderr)
    try:
        spec = (Spec.of(block, section) if block else Spec.default(section, results.axes)).fitting(results)
        spec.check(table)
    except UserError as error:
        raise UserError(f"section={section}: {error}; fix {file}, or the sweep's own file and give its command again") from error
    if unknown := spec.unknown_axes(results):
        print(f"{section}: {', '.join(unknown)}: named in its report block, but no key of its runs; left out", file=sys.stderr)
    return spec


def _write_whole(sections: Sequence[tuple[Results, Spec]], table: CostTable, outputs: Path, track: str | None) -> list[Path]:
    """Write the page and the paper of all these sections."""
    target = outputs / "report"
    said = {f"{results.name}-{name}": text for results, spec in sections for name, text in captions(results, spec, table).items()}
    studies = {results.name: results.studies for results, _ in sections}
    return [write_page(sections, table, target), *write_paper(sections, table, target, track, said, studies)]


def _report_runs(words: Sequence[str], outputs: Path, table: CostTable) -> None:
    """Report any runs, like a grid without a section."""
    runs = [read_run(folder) for folder in dict.fromkeys(find_run(word, outputs) for word in words)]
    for line in not_in_means(runs):
        print(f"in no mean: {line}", file=sys.stderr)
    require(any(run.finished for run in runs), "--runs: none of these has finished; train one to its end")
    target = outputs / "report"
    with _writing():
        make_folder(target)
        for path in draw_runs(runs, table, target):
            print(f"wrote {path}")


if __name__ == "__main__":
    main()
