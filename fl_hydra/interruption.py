"""Signals that ask a program to stop."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

GRACE = 10.0
"""Seconds that a round may take to end after a signal; a longer one is broken off and done again on resume."""

ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, a batch system's or a machine's end, and a terminal that disappears."""


class Interrupted(BaseException):
    """The program was asked to stop; what the last checkpoint holds is kept."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.signal_number = signal_number


def listen() -> None:
    """From here on a signal that asks to stop raises Interrupted where the main thread stands.

    One that is ignored (SIGHUP under nohup, SIGINT in the background of a script) stays ignored, and one that somebody else handles
    stays theirs.
    """
    for number in ASKING:
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _stop)


def stop_listening() -> None:
    """A further signal ends the process at once: there is nothing left to save or to say."""
    for number in ASKING:
        if signal.getsignal(number) is _stop:
            signal.signal(number, signal.SIG_DFL)


def _stop(number: int, frame: FrameType | None) -> None:
    raise Interrupted(number)


class Interruption:
    """Turns the signals that ask to stop into a wish to stop at the next border of a round.

    A second signal, or a round that lasts longer than the grace, raises Interrupted where the program stands. Outside the
    main thread signals cannot be caught, and nothing is changed.
    """

    asked: int | None = None
    """The last signal that any of these was told of, also where the run that was to stop then failed."""

    def __init__(self) -> None:
        self.requested: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        Interruption.asked = None
        if threading.current_thread() is threading.main_thread():
            for number in ASKING:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._ask)
            self._previous[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._break_off)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._previous:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.requested is not None:
            raise Interrupted(number)
        self.requested = Interruption.asked = number
        signal.setitimer(signal.ITIMER_REAL, GRACE)

    def _break_off(self, number: int, frame: FrameType | None) -> None:
        assert self.requested is not None
        raise Interrupted(self.requested)

    def check(self) -> None:
        """At a point where everything is saved: raise if a stop was requested.

        Raises:
            Interrupted: it was.
        """
        if self.requested is not None:
            raise Interrupted(self.requested)
