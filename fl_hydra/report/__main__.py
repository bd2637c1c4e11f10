"""`python -m fl_hydra.report SECTION ...`: the figures and tables of sections, of all if none is named; `--list` shows every run."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NoReturn

from fl_hydra.endings import USAGE_ERROR, framed
from fl_hydra.errors import UserError, require
from fl_hydra.paths import OUTPUTS
from fl_hydra.report.cost import TABLE, CostTable, read_table
from fl_hydra.report.figures import draw_figures
from fl_hydra.report.results import Results
from fl_hydra.report.runs import not_in_means
from fl_hydra.report.spec import Spec
from fl_hydra.report.tables import write_costs, write_results
from fl_hydra.runs.describing import read_description
from fl_hydra.runs.folder import section_runs, sections
from fl_hydra.runs.listing import listed, print_runs
from fl_hydra.runs.reading import read_run


def main() -> None:
    """Write `SECTION-FIGURE.pdf` and `.png`, `SECTION.md` and `.csv`, and what it costs as `SECTION-cost.*`, into `report/`."""
    framed(_report)


def _report() -> None:
    parser = argparse.ArgumentParser(prog="python -m fl_hydra.report", description=main.__doc__)
    parser.add_argument("section", nargs="*", help="the section=NAME that its runs were trained with; all sections if none is named")
    parser.add_argument("--outputs", type=Path, default=OUTPUTS, help="the folder of the runs, as outputs= of train.py; the project's own")
    parser.add_argument("--cost", type=Path, default=TABLE, help="networks and devices to compute times for; conf/cost.yaml if not given")
    parser.add_argument("--list", action="store_true", help="list every run in the outputs folder")
    parser.error = _refuse  # type: ignore[method-assign]  # it would print how to use it in several lines
    arguments = parser.parse_intermixed_args()
    outputs: Path = arguments.outputs
    names: list[str] = []
    for word in arguments.section:  # as train.py takes them
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
    mistakes = 0
    for section in names or sections(outputs):
        try:
            for path in write_section(section, outputs, table):
                print(f"wrote {path}")
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            mistakes += 1
    sys.exit(USAGE_ERROR if mistakes else 0)


def _refuse(message: str) -> NoReturn:
    raise UserError(f"{message}; a report takes names of sections, --outputs, --cost and --list")


def write_section(section: str, outputs: Path, table: CostTable) -> list[Path]:
    """Report a section, with a line for each of its runs whose figures are in no mean; the files written.

    Raises:
        UserError: none of its runs has ended.
    """
    runs = [read_run(folder) for folder in section_runs(section, outputs)]
    for line in not_in_means(runs):
        print(f"in no mean of {section}: {line}", file=sys.stderr)
    require(any(run.rows for run in runs), f"section={section}: none of its {len(runs)} runs has ended; train them first")
    target = outputs / "report"
    target.mkdir(parents=True, exist_ok=True)
    costs = target / f"{section}-cost"
    results = Results.of(section, runs, read_description(section, outputs))
    block = results.description.get("report")
    spec = Spec.of(block, section) if block else Spec.default(section, results.axes)
    return [
        *draw_figures(results, spec, table, target),
        *write_results(runs, target / section),
        *write_costs(runs, table, costs),
    ]


if __name__ == "__main__":
    main()
