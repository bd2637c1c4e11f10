"""Signals that ask a run to stop."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

GRACE = 10.0
"""Seconds that a round may take to end after a signal; a longer one is broken off and done again on resume."""


class Interrupted(BaseException):
    """The run was asked to stop; what the last checkpoint holds is kept."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.signal_number = signal_number


class Interruption:
    """Turns SIGINT, SIGTERM and SIGHUP into a wish to stop at the next border of a round.

    A second signal, or a round that lasts longer than the grace, raises Interrupted where the program stands. Outside the
    main thread signals cannot be caught, and nothing is changed.
    """

    def __init__(self) -> None:
        self.requested: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(number) is not signal.SIG_IGN:  # under nohup, and in the background of a script, it stays ignored
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
        self.requested = number
        signal.setitimer(signal.ITIMER_REAL, GRACE)

    def _break_off(self, number: int, frame: FrameType | None) -> None:
        assert self.requested is not None
        raise Interrupted(self.requested)

    def check(self) -> None:
        """At a point where everything is saved: raise if a stop was asked for.

        Raises:
            Interrupted: it was.
        """
        if self.requested is not None:
            raise Interrupted(self.requested)
