"""What a harmed process does at the n-th call of one sort on one kind of file.

:func:`install` replaces the functions through which Python opens, writes, renames and locks files. Every call on a file under the
outputs folder is written into a trace, twice: when it is tried and when it has returned.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import fcntl
import io
import os
import pathlib
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

KINDS = ("checkpoint", "client state", "metrics", "timings", "environment", "config", "summary", "section", "lock", "folder", "start-up")
"""Kinds of files. `start-up`: what is read to compose the configuration."""

CALLS = ("open", "write", "append", "fsync", "replace", "unlink", "truncate", "mkdir", "flock", "read")
"""Sorts of calls. `open`: for writing. `append`: a write at the end of a file. `read`: opening a file to read it."""


def kind(path: str) -> str:
    """The kind of a file, told by its path under the outputs folder, under its own or a temporary name."""
    name = path.rpartition("/")[2]
    if "sections" in path.split("/"):
        return "section"
    if "clients/" in path:
        return "client state"
    for stem in ("metrics", "timings", "environment", "config", "summary"):
        if f"{stem}." in name:
            return stem
    if "round-" in name:
        return "checkpoint"
    if name.startswith(".") or "lock" in name or "owner" in name:
        return "lock"
    return "folder"


@dataclass(frozen=True)
class Call:
    """One line of a trace. path: under the outputs folder. done: it has returned without an error."""

    seconds: float
    process: int
    done: bool
    call: str
    path: str

    @property
    def kind(self) -> str:
        return "start-up" if self.path.startswith("conf/") else kind(self.path)


@dataclass(frozen=True)
class Strike:
    """What happens, and at which call.

    n: from 1; counted over calls of this sort on this kind of file.
    kind: one of :data:`KINDS`, or `file` for all of them.
    action: `kill` (before the call, or in the middle of writing), `kill after`, `pause` (until told to go on), `SIGTERM`,
        `3 SIGINT`, or the name of an errno, with which this call fails.
    lasting: whether all later calls of this sort on this kind fail, too.
    """

    call: str
    kind: str
    n: int
    action: str
    lasting: bool = False

    def __str__(self) -> str:
        when = "from the" if self.lasting else "at the"
        return f"{self.action} {when} {self.n}. {self.call} of {self.kind}"


@dataclass
class Watch:
    """In the harmed process: the trace, the strikes, and how often their calls were seen.

    struck: shared with the parent; its first byte is set when a strike fell. asks, told: pipes for `pause`.
    """

    outputs: str
    conf: str
    trace: int
    strikes: Sequence[Strike]
    struck: Any
    asks: int = -1
    told: int = -1
    first: Callable[[], None] | None = None
    """Called when the process first looks at its outputs."""

    def __post_init__(self) -> None:
        self._write, self._kill, self._readlink = os.write, os.kill, os.readlink
        self._seen = [0] * len(self.strikes)

    def relative(self, file: Any) -> str | None:
        """A path under the outputs folder, or of the configuration; None for what is not watched."""
        try:
            path = self._readlink(f"/proc/self/fd/{file}") if isinstance(file, int) else os.path.abspath(os.fsdecode(file))
        except (OSError, TypeError, ValueError):
            return None
        if path.startswith(self.outputs):
            if self.first is not None:
                first, self.first = self.first, None
                first()
            return path[len(self.outputs) :].lstrip("/") or "."
        return f"conf/{path[len(self.conf) :].lstrip('/')}" if path.startswith(self.conf) else None

    def note(self, call: str, path: str, done: bool) -> None:
        self._write(self.trace, f"{time.monotonic():.6f}\t{os.getpid()}\t{int(done)}\t{call}\t{path}\n".encode())

    def meets(self, call: str, path: str) -> Strike | None:
        """Note that a call is tried; the strike, if it falls here."""
        self.note(call, path, done=False)
        kind = Call(0, 0, False, call, path).kind
        falls = None
        for number, strike in enumerate(self.strikes):
            if strike.call == call and strike.kind in (kind, "file"):
                self._seen[number] += 1
                if self._seen[number] == strike.n or (strike.lasting and self._seen[number] > strike.n):
                    falls = strike
        return falls

    def fall(self, strike: Strike, path: str) -> None:
        """Do what the strike says.

        Raises:
            OSError: that is what it says.
        """
        self.struck[0] = 1
        if strike.action.startswith("kill"):
            self._kill(os.getpid(), signal.SIGKILL)
        elif strike.action == "pause":
            self._write(self.asks, b"p")
            os.read(self.told, 1)
        elif strike.action == "SIGTERM":
            self._kill(os.getpid(), signal.SIGTERM)
        elif strike.action == "3 SIGINT":
            for _ in range(3):
                self._kill(os.getpid(), signal.SIGINT)
        else:
            number = getattr(errno, strike.action)
            raise OSError(number, os.strerror(number), path)


def install(watch: Watch) -> None:
    """Watch this process from now on."""

    def watched(function: Callable[..., Any], call: str, position: int = 0) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            path = watch.relative(args[position]) if len(args) > position else None
            if path is None:
                return function(*args, **kwargs)
            strike = watch.meets(call, path)
            if strike and strike.action != "kill after":
                watch.fall(strike, path)
            try:
                result = function(*args, **kwargs)
            finally:
                if strike and strike.action == "kill after":
                    watch.fall(strike, path)
            watch.note(call, path, done=True)
            return result

        return wrapper

    def looking(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if watch.first is not None and args and isinstance(args[0], (str, os.PathLike)):
                watch.relative(args[0])
            return function(*args, **kwargs)

        return wrapper

    class WatchedFile(io.FileIO):
        """A file whose writes are watched. One that fails is cut short first, as on a full disk: half is written, then comes the error."""

        failing: Strike | None = None

        def write(self, content: Any) -> int:
            path = watch.relative(self.name)
            if path is None:
                return int(super().write(content))
            if self.failing:
                failing, self.failing = self.failing, None
                watch.fall(failing, path)
            call = "append" if "a" in self.mode else "write"
            strike = watch.meets(call, path)
            if strike and strike.action != "kill after":
                half = bytes(content)[: len(content) // 2]
                if half and not strike.lasting:
                    super().write(half)
                    if hasattr(errno, strike.action):
                        self.failing = strike
                        return len(half)
                    watch.fall(strike, path)  # if it is alive afterwards, the rest is written
                    return len(half)
                watch.fall(strike, path)
            written = int(super().write(content))
            if strike and strike.action == "kill after":
                watch.fall(strike, path)
            watch.note(call, path, done=True)
            return written

    plain_open = builtins.open

    def watched_open(
        file: Any,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        closefd: bool = True,
        opener: Any = None,
    ) -> Any:
        path = watch.relative(file)
        if path is None:
            return plain_open(file, mode, buffering, encoding, errors, newline, closefd, opener)
        writing = bool(set(mode) & set("wax+"))
        call = "open" if writing else "read"
        if strike := watch.meets(call, path):
            watch.fall(strike, path)
        if not writing:
            return plain_open(file, mode, buffering, encoding, errors, newline, closefd, opener)
        raw = WatchedFile(file, mode.replace("b", "").replace("t", ""), closefd, opener)
        watch.note(call, path, done=True)
        if buffering == 0:
            return raw
        buffer = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return buffer if "b" in mode else io.TextIOWrapper(buffer, encoding, errors, newline)

    plain_os_open, plain_os_write = os.open, os.write

    def watched_os_open(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        writing = flags & (os.O_WRONLY | os.O_RDWR)
        if not writing or watch.relative(path) is None:
            return plain_os_open(path, flags, *args, **kwargs)
        return int(watched(plain_os_open, "open")(path, flags, *args, **kwargs))

    def watched_os_write(descriptor: int, content: Any) -> int:
        path = watch.relative(descriptor)
        if path is None:
            return plain_os_write(descriptor, content)
        call = "append" if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_APPEND else "write"
        if strike := watch.meets(call, path):
            half = bytes(content)[: len(content) // 2]
            if half and strike.action.startswith("kill"):
                plain_os_write(descriptor, half)
            watch.fall(strike, path)
        written = plain_os_write(descriptor, content)
        watch.note(call, path, done=True)
        return written

    builtins.open = io.open = watched_open
    os.open, os.write = watched_os_open, watched_os_write
    for name, call, position in (
        ("fsync", "fsync", 0),
        ("fdatasync", "fsync", 0),
        ("replace", "replace", 1),
        ("rename", "replace", 1),
        ("link", "replace", 1),
        ("unlink", "unlink", 0),
        ("remove", "unlink", 0),
        ("truncate", "truncate", 0),
        ("ftruncate", "truncate", 0),
        ("mkdir", "mkdir", 0),
    ):
        setattr(os, name, watched(getattr(os, name), call, position))
    for name in ("flock", "lockf"):
        setattr(fcntl, name, watched(getattr(fcntl, name), "flock"))
    for name in ("stat", "lstat", "access", "listdir", "scandir", "readlink", "rmdir"):
        setattr(os, name, looking(getattr(os, name)))
    if accessor := getattr(pathlib, "_NormalAccessor", None):  # Python 3.10 keeps the functions that pathlib calls
        for name in ("open", "unlink", "replace", "rename", "mkdir"):
            with contextlib.suppress(AttributeError):
                setattr(accessor, name, staticmethod(watched_open if name == "open" else getattr(os, name)))
