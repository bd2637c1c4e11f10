"""`python -m tests.chaos`: run a campaign, or one event of it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.chaos.campaign import campaign, one, write
from tests.chaos.events import LONG, SHORT
from tests.support.make import PROJECT


def main() -> None:
    """Exit status 0 if everything that was tried holds."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=main.__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--events", type=int, help=f"how many; {LONG} if not given")
    parser.add_argument("--only", type=int, metavar="NUMBER", help="this event alone, with everything the program says")
    parser.add_argument("--short", action="store_true", help=f"{SHORT} events on few settings: what the tests run")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--write", type=Path, nargs="?", const=PROJECT / "docs" / "chaos.md", help="write the table there; docs/chaos.md")
    arguments = parser.parse_args()
    if arguments.only is not None:
        sys.exit(0 if one(arguments.seed, arguments.only, arguments.short).verdict.holds else 1)
    events = arguments.events or (SHORT if arguments.short else LONG)
    results = campaign(arguments.seed, events, arguments.short, arguments.processes)
    if arguments.write:
        write(arguments.write, arguments.seed, results)
    sys.exit(0 if all(result.verdict.holds for result in results) else 1)


if __name__ == "__main__":
    main()
