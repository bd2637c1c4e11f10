"""How a run is followed from where it is trained: messages to a process of its own, for which nothing ever waits.

The trackers' client, its threads, its handlers of signals and of the end of a program are all in that process. The one that trains puts
messages into a queue, from which a thread writes them to a pipe. All that can go wrong there is a note in one line.
"""

from __future__ import annotations

import atexit
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fl_hydra.tracking.trackers.base import Followed, Tracker

LAST_SECONDS = 10.0
"""How long the end of a program waits for all that is still to be sent."""


class Follower:
    """Follows nothing: what `tracker=none` is."""

    def held(self, rows: bytes, checkpoint: Path | None = None, round: int = 0, clients: Sequence[str] = ()) -> None:
        """The run begins or goes on with these rows of metrics.jsonl, or a checkpoint holds them now."""

    def ended(self, status: str) -> None:
        """The run has ended, for now or for good."""


class ProcessFollower(Follower):
    """Tells the followers' process of one run."""

    def __init__(self, tracker: Tracker, followed: Followed, warn: Callable[[str], None]) -> None:
        self._tracker, self._followed, self._warn = tracker, followed, warn
        self._open = False

    def held(self, rows: bytes, checkpoint: Path | None = None, round: int = 0, clients: Sequence[str] = ()) -> None:
        followers = _followers(self._warn)
        if not self._open:
            self._open = True
            followers.tell({"do": "follow", "tracker": asdict(self._tracker), "run": _plain(self._followed)})
        followers.tell(
            {
                "do": "held",
                "run": str(self._followed.folder),
                "lines": rows.decode().splitlines(),
                "checkpoint": None if checkpoint is None else str(checkpoint),
                "round": round,
                "clients": list(clients),
            }
        )

    def ended(self, status: str) -> None:
        if self._open:
            self._open = False
            _followers(self._warn).tell({"do": "ended", "run": str(self._followed.folder), "status": status})


def follow(tracker: Tracker, followed: Followed, warn: Callable[[str], None]) -> Follower:
    """A follower of a run, which is told by whoever writes the run."""
    return ProcessFollower(tracker, followed, warn) if tracker.follows else Follower()


def _plain(followed: Followed) -> dict[str, Any]:
    return {**asdict(followed), "folder": str(followed.folder), "outputs": str(followed.outputs)}


class Followers:
    """The followers' process, which is started with the first message and stays for all runs of a program."""

    def __init__(self) -> None:
        self.warn: Callable[[str], None] = lambda line: None
        self._messages: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._writer = threading.Thread(target=self._write, daemon=True, name="followers")
        self._writer.start()
        atexit.register(self.close)

    def tell(self, message: dict[str, Any]) -> None:
        """Put a message into the queue; never waits."""
        self._messages.put(message)

    def _write(self) -> None:
        try:
            process = self._process = subprocess.Popen(
                [sys.executable, "-m", "fl_hydra.tracking", "follow"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                start_new_session=True,  # a Ctrl-C is for the one that trains
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(_PROJECT), os.environ.get("PYTHONPATH", "")]))},
            )
            self._reader = threading.Thread(target=self._read, daemon=True, name="followers' notes")
            self._reader.start()
            assert process.stdin is not None
            while (message := self._messages.get()) is not None:
                process.stdin.write(json.dumps(message) + "\n")
                process.stdin.flush()
        except Exception as error:
            if not self._closed.is_set():
                self.warn(
                    f"the tracker has stopped ({type(error).__name__}: {error}); runs continue, and make sync uploads what is missing"
                )
            self._closed.set()

    def _read(self) -> None:
        assert self._process is not None and self._process.stdout is not None
        for line in self._process.stdout:
            with suppress(Exception):
                said = json.loads(line)
                if "note" in said:
                    self.warn(said["note"])
                if said.get("closed"):
                    self._closed.set()
        self._closed.set()

    def close(self, seconds: float = LAST_SECONDS) -> None:
        """End the process, after waiting for what is still to be sent, but no longer than that."""
        global _present
        until = time.monotonic() + seconds
        atexit.unregister(self.close)
        _present = None
        self.tell({"do": "close", "seconds": max(0.5, seconds - 1.5)})
        try:
            told = self._closed.wait(seconds)
            if not told:
                self.warn(f"the tracker has not taken everything within {seconds:.0f} s; make sync uploads what is missing")
            self._messages.put(None)
            if self._process is not None:
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(max(0.1, until - time.monotonic()) if told else 0.1)
        finally:
            if self._process is not None and self._process.poll() is None:
                self._process.kill()
                self._process.wait()
            self._let_go()

    def _let_go(self) -> None:
        """Close the pipes, whose other ends are gone, and with them end the threads."""
        for thread in (self._writer, self._reader):
            if thread is not None and thread is not threading.current_thread():
                thread.join(1.0)
        if self._process is not None:
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    with suppress(OSError, ValueError):
                        pipe.close()


_PROJECT = Path(__file__).resolve().parents[2]
_present: Followers | None = None


def _followers(warn: Callable[[str], None]) -> Followers:
    global _present
    if _present is None:
        _present = Followers()
    _present.warn = warn
    return _present


def close(seconds: float = LAST_SECONDS) -> None:
    """End the followers' process, if there is one, as the end of a program does; wait no longer than so many seconds."""
    if _present is not None:
        _present.close(seconds)
