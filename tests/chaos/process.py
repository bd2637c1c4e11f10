"""Commands in real processes, forked from this one, which has imported what they import."""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from tests.chaos.watch import Call, Strike, Watch, install
from tests.support.make import PROJECT

IDLE = 12.0
"""Seconds without computing after which a process hangs, unless it says that it waits."""
LIMIT = 240.0
"""Seconds after which it hangs whatever it does."""


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    status: its exit status; minus the signal that ended it. hung: it had to be ended. struck: its strike fell.
    """

    words: tuple[str, ...]
    status: int
    output: str
    trace: tuple[Call, ...]
    hung: bool
    struck: bool

    @property
    def lines(self) -> list[str]:
        return self.output.splitlines()

    def counts(self) -> Counter[tuple[str, str]]:
        """How often each sort of call was tried on each kind of file."""
        return Counter((each.call, each.kind) for each in self.trace if not each.done)


def train(words: Sequence[str]) -> None:
    """`python train.py`."""
    import fl_hydra.app

    sys.argv = ["train.py", *words]
    fl_hydra.app.main()


def report(words: Sequence[str]) -> None:
    """`python -m fl_hydra.report`."""
    from fl_hydra.report.__main__ import main

    sys.argv = ["report", *words]
    main()


@dataclass
class Process:
    """A command that runs. Of `asks`, a paused one writes a byte; to `tells`, one is written to let it go on."""

    words: tuple[str, ...]
    pid: int
    outputs: Path
    asks: int
    tells: int
    _output: BinaryIO = field(repr=False)
    _trace: BinaryIO = field(repr=False)
    _struck: mmap.mmap = field(repr=False)
    _status: int | None = None
    _hung: bool = False

    @classmethod
    def start(
        cls, words: Sequence[str], outputs: Path, strikes: Sequence[Strike] = (), main: Callable[[Sequence[str]], None] = train
    ) -> Process:
        """Fork it; it works in the folder above its outputs."""
        output, trace, struck = _file(), _file(), mmap.mmap(-1, 1)
        (asks, asking), (told, tells) = os.pipe(), os.pipe()
        outputs.parent.mkdir(parents=True, exist_ok=True)
        pid = os.fork()
        if pid == 0:
            status = 70
            try:
                os.setsid()
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
                os.close(asks)
                os.close(tells)
                os.chdir(outputs.parent)
                for number in (signal.SIGINT, signal.SIGTERM):
                    signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
                install(Watch(str(outputs), str(PROJECT / "conf"), trace.fileno(), strikes, struck, asking, told))
                status = _run(main, words)
            finally:
                os._exit(status)
        os.close(asking)
        os.close(told)
        return cls(tuple(words), pid, outputs, asks, tells, output, trace, struck)

    def trace(self) -> tuple[Call, ...]:
        """Calls up to now."""
        text = os.pread(self._trace.fileno(), os.fstat(self._trace.fileno()).st_size, 0).decode(errors="replace")
        lines = (line.split("\t", 4) for line in text.splitlines() if line.count("\t") >= 4)
        return tuple(Call(float(at), int(process), done == "1", call, path) for at, process, done, call, path in lines)

    def said(self) -> str:
        """What it printed up to now."""
        return os.pread(self._output.fileno(), os.fstat(self._output.fileno()).st_size, 0).decode(errors="replace")

    def running(self) -> bool:
        """Whether it runs still."""
        if self._status is None:
            pid, code = os.waitpid(self.pid, os.WNOHANG)
            self._status = os.waitstatus_to_exitcode(code) if pid else None
        return self._status is None

    def wait(self, until: Callable[[], bool] = lambda: False) -> bool:
        """Until it ends or hangs, which ends it, or until something else is true; whether it runs still."""
        began = busy = time.monotonic()
        used, pause = -1, 0.002
        while self.running() and not until():
            time.sleep(pause)
            pause = min(0.02, pause * 1.2)
            now = time.monotonic()
            if (ticks := _ticks(self.pid)) != used:
                used, busy = ticks, now
            patience = LIMIT if re.search("wait", self.said(), re.IGNORECASE) else IDLE
            if now - busy > patience or now - began > LIMIT:
                self._hung = True
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.pid, signal.SIGKILL)
                _, code = os.waitpid(self.pid, 0)
                self._status = os.waitstatus_to_exitcode(code)
        return self._status is None

    def end(self) -> Ended:
        """Wait for its end; how it was."""
        self.wait()
        assert self._status is not None
        ended = Ended(self.words, self._status, self.said(), self.trace(), self._hung, bool(self._struck[0]))
        for descriptor in (self.asks, self.tells):
            os.close(descriptor)
        self._output.close()
        self._trace.close()
        return ended


def _file() -> BinaryIO:
    """One without a name, that a child inherits and its parent closes."""
    return os.fdopen(os.memfd_create("chaos"), "w+b")


def _ticks(pid: int) -> int:
    """Of the processor, used by a process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])
    except (OSError, IndexError):
        return -1


def _run(main: Callable[[Sequence[str]], None], words: Sequence[str]) -> int:
    """A command's exit status, as Python gives it."""
    status = 1
    try:
        main(words)
        status = 0
    except SystemExit as error:
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    with contextlib.suppress(BaseException):
        sys.stdout.flush()
        sys.stderr.flush()
        for thread in threading.enumerate():  # as at the end of any process
            if thread is not threading.current_thread() and not thread.daemon:
                thread.join()
    return status


def command(words: Sequence[str], outputs: Path, *strikes: Strike, main: Callable[[Sequence[str]], None] = train) -> Ended:
    """Run a command to its end."""
    return Process.start(words, outputs, strikes, main).end()


def import_what_is_imported(words: Sequence[str], folder: Path) -> None:
    """Import in this process what a command imports, so that commands forked from it have it already; nothing else is done in it."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(1, 2)
        os.close(reading)
        os.chdir(folder)
        _run(train, words)
        _run(report, ["--outputs", str(folder / "outputs")])
        with open(writing, "w") as file:
            file.write("\n".join(sorted(sys.modules)))
        os._exit(0)
    os.close(writing)
    with open(reading) as file:
        names = file.read().split()
    os.waitpid(pid, 0)
    for name in names:
        with contextlib.suppress(Exception):
            __import__(name)
