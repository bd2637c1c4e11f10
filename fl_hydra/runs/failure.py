"""The message of a run that could not continue."""

from __future__ import annotations

import errno
import traceback
from contextlib import suppress
from pathlib import Path

from fl_hydra.files import CorruptFile, OddFile, write_atomically
from fl_hydra.runs.ownership import OwnershipLost

ERROR = "error.txt"
"""The traceback of the error that a run ended with."""


class ForeignRun(Exception):
    """The folder holds another run than its name says; the text says which, and what to do."""


def explain(error: Exception, folder: Path, kept: bool = False) -> str:
    """One line for what ended a run.

    Args:
        error: that did.
        folder: of the run.
        kept: whether there is a checkpoint to continue from.
    """
    if isinstance(error, ForeignRun | OwnershipLost):
        return str(error)
    if isinstance(error, OSError):
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        way_out = "make room" if full else "move it away" if isinstance(error, OddFile) else "fix that"
        where = error.filename or folder
        safe = "the last checkpoint is kept: " if kept else ""
        return f"{error.strerror or error}: {where}; {safe}{way_out}, then run the same command again"
    if isinstance(error, CorruptFile):
        return f"{folder}: {error}; run the same command again, which continues from an intact checkpoint"
    what = " ".join(str(error).split()) or type(error).__name__
    return f"{type(error).__name__}: {what[:300]}"


def write_traceback(error: Exception, path: Path) -> bool:
    """Write error.txt, if there is room for it; whether it is there."""
    with suppress(OSError):
        write_atomically(path, "".join(traceback.format_exception(error)).encode())
        return True
    return False


def is_out_of_memory(error: Exception) -> bool:
    """Whether the machine or a device is out of memory."""
    from fl_hydra.training.memory import out_of_memory

    return isinstance(error, MemoryError) or out_of_memory(error)
