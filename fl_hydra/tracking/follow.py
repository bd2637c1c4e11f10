"""The followers' process: reads messages, and passes them to the tracker of each run."""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from fl_hydra.tracking.trackers.base import Followed, Follows, Held, trackers

POLL = 0.2
"""Seconds between two looks at what takes long."""
ORPHANED_SECONDS = 5.0
"""How long what has been sent is waited for where the one that trains was killed."""


def serve(messages: IO[str], answers: IO[str]) -> None:
    """Follow runs until told to close, or until whoever trains them is gone."""

    def answer(content: dict[str, Any]) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    def note(line: str) -> None:
        answer({"note": " ".join(line.split())})

    inbox: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()

    def read() -> None:
        for line in messages:
            inbox.put(json.loads(line))
        inbox.put(None)

    threading.Thread(target=read, daemon=True).start()
    following = Following(note)
    while True:
        try:
            message = inbox.get(timeout=POLL)
        except queue.Empty:
            following.poll()
            continue
        if message is None:
            following.close(ORPHANED_SECONDS)
            break
        if message["do"] == "close":
            following.close(message["seconds"])
            answer({"closed": True})
            break
        following.take(message)
        if inbox.empty():
            following.poll()
    os._exit(0)  # whatever of the client still waits


class Following:
    """The runs that are followed. What goes wrong with one ends the following of that one, with a note.

    Args:
        note: tells the user something in a line.
    """

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note = note
        self._runs: dict[str, Follows] = {}
        self._ending: list[Follows] = []
        self._closing: list[threading.Thread] = []

    def take(self, message: dict[str, Any]) -> None:
        """Do what a message says."""
        try:
            match message["do"]:
                case "follow":
                    run = {**message["run"], "folder": Path(message["run"]["folder"]), "outputs": Path(message["run"]["outputs"])}
                    followed = Followed(**run)
                    tracker = trackers[message["tracker"]["name"]](**message["tracker"])
                    if (follows := tracker.follow(followed, self._note)) is not None:
                        self._runs[str(followed.folder)] = follows
                case "held" if follows := self._runs.get(message["run"]):
                    checkpoint = None if message["checkpoint"] is None else Path(message["checkpoint"])
                    follows.held(Held(message["lines"], checkpoint, message["round"], message["clients"]))
                case "ended" if follows := self._runs.pop(message["run"], None):
                    follows.ended(message["status"])
                    self._ending.append(follows)
        except Exception as error:
            self._failed(message.get("run"), error)

    def poll(self) -> bool:
        """Go on with what takes long; whether anything is left to do for runs that have ended."""
        for key, follows in list(self._runs.items()):
            try:
                follows.poll()
            except Exception as error:
                self._failed(key, error)
        for follows in list(self._ending):
            try:
                left = follows.poll()
            except Exception as error:
                self._failed(None, error)
                left = False
            if not left:
                self._ending.remove(follows)
                self._close(follows)
        return bool(self._ending)

    def close(self, seconds: float) -> None:
        """End all, those in the middle as interrupted; wait for it no longer than so many seconds."""
        until = time.monotonic() + seconds
        for follows in self._runs.values():
            try:
                follows.ended("interrupted")
                self._ending.append(follows)
            except Exception as error:
                self._failed(None, error)
        self._runs.clear()
        while self.poll() and time.monotonic() < until:
            time.sleep(POLL / 4)
        for follows in self._ending:
            self._close(follows)
        for thread in self._closing:
            thread.join(max(0.0, until - time.monotonic()))

    def _close(self, follows: Follows) -> None:
        def close() -> None:
            try:
                follows.close()
            except Exception as error:
                self._failed(None, error)

        thread = threading.Thread(target=close, daemon=True)
        thread.start()
        self._closing.append(thread)

    def _failed(self, run: Any, error: Exception) -> None:
        key = str(run["folder"]) if isinstance(run, dict) else str(run)
        what = " ".join(str(error).split())[:200] or type(error).__name__
        self._note(f"a run is no longer tracked ({type(error).__name__}: {what}); it continues, and make sync uploads what is missing")
        if (follows := self._runs.pop(key, None)) is not None:
            self._close(follows)


def main() -> None:
    """Serve on standard input and output, which nobody else may write to."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    serve(sys.stdin, answers)
