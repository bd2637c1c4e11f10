"""`python -m fl_hydra.sweeping.smoke KEY=VALUE ...`: every section of both tracks at smoke size, in one process, then their report.

A section that fails leaves the others going on; a signal ends all. What is finished is found, as in every sweep.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from fl_hydra.paths import OUTPUTS

FOLDER = OUTPUTS / "smoke"


def main() -> None:
    """Run all sections; leave with 0 if every point of each is finished and the report is drawn, with 1 if not."""
    from fl_hydra.app import main as train
    from fl_hydra.arguments import sections
    from fl_hydra.report.__main__ import main as report

    typed = sys.argv[1:]
    folder = next((word.partition("=")[2] for word in typed if word.startswith("outputs=")), str(FOLDER))
    own = ["hydra/launcher=packed", f"outputs={folder}"]
    given = {word.partition("=")[0] for word in typed}
    own = [word for word in own if word.partition("=")[0] not in given]
    began, failed, names = time.monotonic(), [], []
    for track, listed in sections().items():
        for section in listed:
            print(f"\n== {section} ==", file=sys.stderr, flush=True)
            names.append(f"{section}-smoke")
            if _status(train, ["train.py", "-m", f"+sweep/{track}={section}", "size=smoke", *own, *typed]):
                failed.append(section)
    if "dry_run=true" not in typed and _status(report, ["report.py", *names, "--outputs", folder]):
        failed.append("the report")
    ended = f"failed: {', '.join(failed)}" if failed else "all finished"
    print(f"{len(names)} sections at smoke size in {time.monotonic() - began:.0f} s: {ended}")
    sys.exit(1 if failed else 0)


def _status(program: object, argv: Sequence[str]) -> int:
    """Run a program as if these had been typed; its exit status.

    Raises:
        SystemExit: a signal asked to stop.
    """
    from hydra.core.global_hydra import GlobalHydra

    sys.argv = list(argv)
    try:
        assert callable(program)
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
