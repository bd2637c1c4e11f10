"""Standard streams whose readers may be gone: what is trained, and how a command ends, never depend on who listens."""

from __future__ import annotations

import io
import os
import sys
from typing import Any


class _Unheard(io.FileIO):
    """Drops what cannot be written: the terminal has disappeared, a pipe's reader has ended, the disk behind a file is full."""

    def write(self, content: Any) -> int:
        try:
            return super().write(content) or len(content)
        except OSError:
            return len(content)


def guard_output() -> None:
    """Make writing to standard output and standard error unable to fail, for lack of a reader or of a character in its alphabet.

    A stream that was closed before the program began (`>&-`) is the null device from here on: otherwise the next file that is
    opened would have its number, and what others print there would end in that file.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free, which is this one
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is not getattr(sys, f"__{name}__"):
            continue  # somebody captures it
        encoding = stream.encoding if stream is not None else "utf-8"
        raw = _Unheard(number, "w", closefd=False)
        guarded = io.TextIOWrapper(io.BufferedWriter(raw), encoding=encoding, errors="backslashreplace", line_buffering=True)
        setattr(sys, name, guarded)
