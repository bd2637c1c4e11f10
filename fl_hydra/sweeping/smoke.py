"""`python -m fl_hydra.sweeping.smoke [SECTION ...] [KEY=VALUE ...]`: every section at smoke size, in one process, then their report.

If a section fails, the others continue; a signal ends all. Finished runs are found, as in every sweep.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from fl_hydra.errors import UserError
from fl_hydra.exits import framed
from fl_hydra.paths import OUTPUTS

FOLDER = OUTPUTS / "smoke"


def main() -> None:
    """Run all sections, or the named ones; exit with 0 if every point of each is finished and the report is drawn, with 1 if not."""
    framed(_main)


def _main() -> None:
    from fl_hydra.app import main as train
    from fl_hydra.arguments import sections
    from fl_hydra.report.__main__ import main as report

    typed = [word for word in sys.argv[1:] if "=" in word or word.startswith("-")]
    named = [word for word in sys.argv[1:] if word not in typed]
    tracks = {section: track for track, listed in sections().items() for section in listed}
    if unknown := [section for section in named if section not in tracks]:
        raise UserError(f"{unknown[0]}: there is no such section; choose from {', '.join(tracks)}")
    given = {word.partition("=")[0]: word.partition("=")[2] for word in typed}
    folder = given.get("outputs", str(FOLDER))
    own = [word for word in ("hydra/launcher=packed", f"outputs={folder}") if word.partition("=")[0] not in given]
    began, failed = time.monotonic(), []
    for section in named or tracks:
        print(f"\n== {section} ==", file=sys.stderr, flush=True)
        if _status(train, ["train.py", "-m", f"+sweep/{tracks[section]}={section}", "size=smoke", *own, *typed]):
            failed.append(section)
    reported = [f"{section}-smoke" for section in named or tracks]
    if given.get("dry_run") != "true" and _status(report, ["report.py", *(reported if named else []), "--outputs", folder]):
        failed.append("the report")
    page = Path(folder).expanduser() / "report" / "index.html"
    if not named and "the report" not in failed and given.get("dry_run") != "true":
        print(f"their report: {page}")
    ended = f"failed: {', '.join(failed)}" if failed else "all finished"
    print(f"{len(reported)} sections at smoke size in {time.monotonic() - began:.0f} s: {ended}")
    sys.exit(1 if failed else 0)


def _status(program: Callable[[], None], argv: Sequence[str]) -> int:
    """Run a program with these arguments; returns its exit status.

    Raises:
        SystemExit: a signal asked to stop.
    """
    from hydra.core.global_hydra import GlobalHydra

    sys.argv = list(argv)
    try:
        program()
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if status > 128:
            raise
        return status
    finally:
        GlobalHydra.instance().clear()
    return 0


if __name__ == "__main__":
    main()
