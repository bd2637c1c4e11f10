"""Commands in real processes, forked from this one, which has imported what they import."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import pickle
import re
import signal
import socket
import sys
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, ClassVar, NoReturn

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


def train_from_its_beginning(words: Sequence[str]) -> None:
    """The same, composed anew."""
    train(words)


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
        """Start it; it works in the folder above its outputs. What happens before it looks at them is done once for many."""
        outputs.parent.mkdir(parents=True, exist_ok=True)
        (asks, asking), (told, tells) = os.pipe(), os.pipe()
        output, trace, struck = _file(0), _file(0), _file(1)
        descriptors = [output.fileno(), trace.fileno(), struck.fileno(), asking, told]
        whole = main is not train or any(strike.kind == "start-up" for strike in strikes)
        pid = None if whole else Template.of(tuple(words), outputs).go_on(strikes, descriptors)
        if pid is None:
            pid = os.fork()
            if pid == 0:
                _begin(main, words, outputs, strikes, descriptors)
        os.close(asking)
        os.close(told)
        return cls(tuple(words), pid, outputs, asks, tells, output, trace, mmap.mmap(struck.fileno(), 1))

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
                for end in (os.killpg, os.kill):
                    with contextlib.suppress(ProcessLookupError):
                        end(self.pid, signal.SIGKILL)
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


def _file(size: int) -> BinaryIO:
    """One without a name, shared with a process."""
    descriptor = os.memfd_create("chaos")
    os.ftruncate(descriptor, size)
    return os.fdopen(descriptor, "w+b")


class Template:
    """A process that has run a command to where it first looks at its outputs, and goes on from there in a child, as often as asked.

    So composing a configuration, which takes as long as a tiny run, is paid for once. Such a child is adopted by this process when the
    one between them has ended.
    """

    made: ClassVar[OrderedDict[tuple[str, ...], Template]] = OrderedDict()
    MOST = 6

    def __init__(self, words: tuple[str, ...], outputs: Path) -> None:
        self._mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        said = _file(0)
        self._pid = os.fork()
        if self._pid == 0:
            _control(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: it ends with this process
            nowhere = os.open(os.devnull, os.O_WRONLY)
            watch = _watch(outputs, (), [nowhere] * 5)
            watch.first = lambda: _serve(theirs, said, watch, outputs)
            _run_and_leave(train, words, watch, said.fileno(), outputs.parent)
        theirs.close()
        said.close()
        self._mine.settimeout(LIMIT)

    @classmethod
    def of(cls, words: tuple[str, ...], outputs: Path) -> Template:
        """The one of a command, made if need be; of those that were not used for long, the last is ended."""
        if words not in cls.made:
            cls.made[words] = cls(words, outputs)
        cls.made.move_to_end(words)
        while len(cls.made) > cls.MOST:
            cls.made.popitem(last=False)[1].end()
        return cls.made[words]

    def go_on(self, strikes: Sequence[Strike], descriptors: list[int]) -> int | None:
        """A child of it that goes on; None if the command ended without looking at its outputs."""
        try:
            socket.send_fds(self._mine, [pickle.dumps(tuple(strikes))], descriptors)
            return int(self._mine.recv(20) or 0) or None
        except OSError:
            return None

    def end(self) -> None:
        """End it."""
        self._mine.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)


def _serve(requests: socket.socket, said: BinaryIO, watch: Watch, outputs: Path) -> None:
    """In a template: fork children that return from here, and go on."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.chdir("/")  # the folder above the outputs comes and goes
    while True:
        request, descriptors, _, _ = socket.recv_fds(requests, 65536, 5)
        if not request:
            os._exit(0)
        reading, writing = os.pipe()
        between = os.fork()
        if between == 0:
            pid = os.fork()
            if pid == 0:
                break
            os.write(writing, str(pid).encode())
            os._exit(0)
        os.waitpid(between, 0)
        requests.send(os.read(reading, 20))
        for descriptor in (*descriptors, reading, writing):
            os.close(descriptor)
    requests.close()
    output, watch.trace, struck, watch.asks, watch.told = descriptors
    watch.strikes, watch.struck = pickle.loads(request), mmap.mmap(struck, 1)
    watch.__post_init__()
    os.write(output, os.pread(said.fileno(), os.fstat(said.fileno()).st_size, 0))
    _settle(output, outputs.parent)


def adopt() -> None:
    """Make this process the parent of those whose parents have ended."""
    _control(36, 1)  # PR_SET_CHILD_SUBREAPER


def _control(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _watch(outputs: Path, strikes: Sequence[Strike], descriptors: list[int]) -> Watch:
    _, trace, struck, asks, told = descriptors
    return Watch(str(outputs), str(PROJECT / "conf"), trace, strikes, mmap.mmap(struck, 1) if strikes else bytearray(1), asks, told)


def _begin(
    main: Callable[[Sequence[str]], None], words: Sequence[str], outputs: Path, strikes: Sequence[Strike], fds: list[int]
) -> NoReturn:
    """In a child: run a command from its beginning."""
    _run_and_leave(main, words, _watch(outputs, strikes, fds), fds[0], outputs.parent)


def _settle(output: int, folder: Path) -> None:
    """Where a command works, and where it prints."""
    os.setsid()
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(folder)


def _run_and_leave(main: Callable[[Sequence[str]], None], words: Sequence[str], watch: Watch, output: int, folder: Path) -> NoReturn:
    status = 70
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        _settle(output, folder)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        install(watch)
        status = _run(main, words)
    finally:
        os._exit(status)


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


def import_what_is_imported(words: Sequence[str], folder: Path, reports: bool) -> None:
    """Import in this process what a command imports, so that commands forked from it have it already; nothing else is done in it.

    reports: what the report imports to draw, too, which takes some seconds.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(1, 2)
        os.close(reading)
        os.chdir(folder)
        _run(train, words)
        _run(report, [*([] if reports else ["--list"]), "--outputs", str(words[-1].partition("=")[2])])
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
