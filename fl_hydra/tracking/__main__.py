"""`python -m fl_hydra.tracking sync|dashboard`; `follow` is started by runs."""

from __future__ import annotations

import sys

from fl_hydra.exits import framed


def main() -> None:
    """Run a subcommand."""
    if sys.argv[1:] == ["follow"]:
        from fl_hydra.tracking.follow import main as follow

        follow()
    else:
        framed(_command)


def _command() -> None:
    from fl_hydra.errors import UserError

    commands = ("sync", "dashboard")
    if sys.argv[1:2] == ["sync"]:
        from fl_hydra.uploads.sync import main as sync

        sync(sys.argv[2:])
    elif sys.argv[1:2] == ["dashboard"]:
        from fl_hydra.uploads.dashboards import main as dashboard

        dashboard(sys.argv[2:])
    else:
        raise UserError(f"{' '.join(sys.argv[1:2]) or 'nothing'}: choose {' or '.join(commands)}, as in python -m fl_hydra.tracking sync")


if __name__ == "__main__":
    main()
