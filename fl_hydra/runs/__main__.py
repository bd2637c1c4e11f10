"""`python -m fl_hydra.runs WHAT ...`: list, show, compare and remove runs."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from fl_hydra.errors import UserError, require
from fl_hydra.exits import framed
from fl_hydra.paths import OUTPUTS

WHATS = "status, list, show RUN, compare RUN RUN, remove RUN ..., section rename OLD NEW or section empty NAME"


def main() -> None:
    """Answer."""
    framed(_main)


def _main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m fl_hydra.runs",
        description="List, show, compare and remove runs. A RUN is the name of its folder, 4 or more digits of its hash, or a path.",
    )
    parser.error = _refuse  # type: ignore[method-assign]  # it would print how to use it in several lines
    parser.add_argument("--outputs", type=Path, default=OUTPUTS, help="the folder of the runs; the project's own")
    whats = parser.add_subparsers(dest="what", required=True)
    shapes: tuple[tuple[str, tuple[tuple[str, int | str], ...], str], ...] = (
        ("status", (), "by section: done, running, failed, to do, time left"),
        ("list", (("filter", "*"),), "runs that meet all conditions, as algorithm=localsgd 'optimizer.lr<0.1'"),
        ("show", (("run", 1),), "all that is known of a run"),
        ("compare", (("run", 2),), "where two runs differ: keys and results; and their curves, drawn into OUTPUTS/report"),
        ("remove", (("run", "+"),), "delete runs, also from the lists of sections"),
        ("section", (("action", 1), ("name", "+")), "rename OLD NEW, or empty NAME: forget which runs a section has"),
    )
    for name, words, text in shapes:
        sub = whats.add_parser(name, help=text, description=text)
        sub.error = _refuse  # type: ignore[method-assign]
        sub.add_argument("--outputs", type=Path, default=argparse.SUPPRESS, help="the folder of the runs; the project's own")
        for word, count in words:
            sub.add_argument(word, nargs=count)
        if name == "list":
            sub.add_argument("--sort", default="", metavar="KEYS", help="keys, with a minus for the greatest first: --sort=-val/acc,seed")
        if name == "remove":
            sub.add_argument("--yes", action="store_true", help="do not ask")
    arguments = parser.parse_args()
    outputs: Path = arguments.outputs
    conditions: list[str] = list(getattr(arguments, "filter", []))
    if typed := [word for word in conditions if word.startswith("outputs=")]:  # as train.py takes it
        outputs = Path(typed[-1].removeprefix("outputs="))
        conditions = [word for word in conditions if word not in typed]
    outputs = outputs.expanduser()
    require(outputs.is_dir(), f"outputs={outputs}: there is no such folder")
    match arguments.what:
        case "status":
            from fl_hydra.runs.status import print_status
            from fl_hydra.tuning.search_standing import print_searches

            print_status(outputs)
            print_searches(outputs)
        case "list":
            from fl_hydra.runs.listing import chosen, listed, print_runs

            print_runs(chosen(listed(outputs), conditions, list(filter(None, re.split(r"[,\s]+", arguments.sort)))))
        case "section":
            _section(arguments.action[0], arguments.name, outputs)
        case _:
            _runs(arguments.what, arguments.run, outputs, yes=getattr(arguments, "yes", False))


def _runs(what: str, words: Sequence[str], outputs: Path, yes: bool) -> None:
    from fl_hydra.runs.finding import find_run
    from fl_hydra.runs.showing import compare, show

    folders = list(dict.fromkeys(find_run(word, outputs) for word in words))
    if what == "show":
        show(folders[0], folders[0].parents[2])
    elif what == "compare":
        require(len(folders) == 2, f"{words[0]} and {words[1]} are the same run; name two")
        compare(*folders)
        _draw(folders)
    else:
        _remove(folders, yes)


def _draw(folders: Sequence[Path]) -> None:
    """Curves of runs, beside the report's figures."""
    from fl_hydra.report.cost import TABLE, read_table
    from fl_hydra.report.figures import draw_runs
    from fl_hydra.runs.reading import read_run, with_rows

    runs = [with_rows(read_run(folder)) for folder in folders]
    target = folders[0].parents[2] / "report"
    try:
        name = "-".join(["compare", *(folder.name.rpartition("-")[2] for folder in folders)])
        written = draw_runs(runs, read_table(TABLE), target, name, begun=True)
    except OSError as error:
        raise UserError(f"{target}: nothing can be written there ({error.strerror or error}), so no picture was drawn") from error
    for path in written:
        print(f"wrote {path}")
    if not written:
        print("no picture: " + ("their curves are the same" if all(run.rows for run in runs) else "none of their results differ yet"))
    for run in runs:
        if written and not run.finished:
            print(f"{run.folder.name}: {run.status}; {'its curve ends there' if run.rows else 'it has no figures yet'}")


def _remove(folders: Sequence[Path], yes: bool) -> None:
    from fl_hydra.runs.reading import read_run
    from fl_hydra.runs.removing import remove_runs
    from fl_hydra.runs.standing import in_bytes, size

    for folder in folders:
        print(f"{folder}: {read_run(folder).status}, {in_bytes(size(folder))}")
    if not yes:
        require(sys.stdin.isatty(), "remove asks for confirmation, and there is no terminal to answer; give --yes")
        answer = input(f"delete {'this run' if len(folders) == 1 else f'these {len(folders)} runs'} for good? [y/N] ")
        require(answer.strip().lower() in ("y", "yes"), "nothing was deleted")
    homes = remove_runs(folders, lambda line: print(f"note: {line}", file=sys.stderr))
    taken = f", also from the lists of {', '.join(homes)}: draw their reports again" if homes else ""
    print(f"deleted {len(folders)} run{'s' if len(folders) > 1 else ''}{taken}")


def _section(action: str, names: Sequence[str], outputs: Path) -> None:
    from fl_hydra.runs.removing import empty_section, rename_section

    def notify(line: str) -> None:
        print(f"note: {line}", file=sys.stderr)

    if action == "rename" and len(names) == 2:
        for name in names:
            require(bool(re.fullmatch(r"[A-Za-z0-9_-]{1,100}", name)), f"{name}: at most 100 letters, digits, _ and - are allowed")
        count = rename_section(names[0], names[1], outputs, notify)
        print(f"section {names[0]} is {names[1]} now, with its {count} runs; train with section={names[1]} to add to it")
    elif action == "empty" and len(names) == 1:
        count = empty_section(names[0], outputs, notify)
        print(f"section {names[0]} is empty; its {count} runs are still there: the same command finds them")
    else:
        raise UserError(f"section {' '.join([action, *names])}: write section rename OLD NEW, or section empty NAME")


def _refuse(message: str) -> NoReturn:
    raise UserError(f"{message}; ask for {WHATS}")


if __name__ == "__main__":
    main()
