"""How a command ends: with one line and a correct exit status, whatever becomes of its output and whatever signal comes.

Exceptions that pass through Hydra derive from BaseException: it would report ordinary ones as a failed job.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from fl_hydra.errors import UserError
from fl_hydra.interruption import Interrupted, listen, stop_listening
from fl_hydra.output import guard_output

USAGE_ERROR, FAILED = 2, 1


class SweepExit(BaseException):
    """Carries the exit status of a sweep."""

    def __init__(self, status: int) -> None:
        self.status = status


class UsageExit(BaseException):
    """Carries a mistake of the user."""


def framed(program: Callable[[], None]) -> None:
    """Run a program, and exit with one line if it fails.

    Ends with status 2 after a mistake in the command, with 1 after another error, and with 128 + n after signal n, which may come at
    any moment from here on; what the program imports should therefore be imported in it.
    """
    if sys.getfilesystemencoding() == "ascii":  # then a path with an accent could not be written into any file
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
    arguments = sys.argv[1:]
    full_error = os.environ.get("HYDRA_FULL_ERROR") == "1"
    guard_output()
    try:
        listen()
        program()
    except Interrupted as stopped:
        leave_stopped(
            f"stopped by {stopped}; what was done is kept: run the same command again to continue", stopped.signal_number, arguments
        )
    except KeyboardInterrupt:  # where somebody else handles the signal
        leave_stopped("stopped by SIGINT; what was done is kept: run the same command again to continue", signal.SIGINT, arguments)
    except (UsageExit, UserError) as error:
        fail(str(error), USAGE_ERROR)
    except Exception as error:
        if full_error:
            raise
        what = " ".join(str(error).split()) or type(error).__name__
        fail(f"{what} (HYDRA_FULL_ERROR=1 shows where)", FAILED)
    finally:
        stop_listening()


def leave_stopped(reason: str, signal_number: int, arguments: Sequence[str]) -> NoReturn:
    """Exit after a signal, with the command that continues."""
    print(f"{reason}:\n    {command(arguments)}", file=sys.stderr)
    sys.exit(128 + signal_number)


def fail(message: str, status: int) -> NoReturn:
    """Exit with one line on standard error."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(status)


def command(arguments: Sequence[str]) -> str:
    """The present program with these arguments, as it can be given to a shell."""
    script = sys.argv[0]
    if script.endswith("__main__.py"):
        program = [sys.orig_argv[0], "-m", f"fl_hydra.{Path(script).parent.name}"]
    else:
        program = [sys.orig_argv[0], script] if script.endswith(".py") else [Path(script).name]
    return shlex.join([*program, *arguments])
