"""What a tracker is: options of `tracker=`, and the protocol of what follows a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from fl_hydra.registry import Component, Registry


@dataclass(frozen=True)
class Followed:
    """A run, as a tracker is told of it.

    folder: of the run. run: its hash. name: readable. config: what decides its result. group: the section or study that it belongs to.
    trial: whether it helps to choose. outputs: the folder of all runs.
    """

    folder: Path
    run: str
    name: str
    config: dict[str, Any]
    group: str
    trial: bool
    outputs: Path


@dataclass(frozen=True)
class Held:
    """What a run's newest checkpoint holds.

    lines: the rows of metrics.jsonl, of which row n, counted from 0, is step n. checkpoint: its file; None where there is none. round: that
    it comes after. clients: names of the files of client state that it refers to.
    """

    lines: list[str]
    checkpoint: Path | None = None
    round: int = 0
    clients: Sequence[str] = ()


class Follows(Protocol):
    """Follows one run. All of it happens in a process of its own."""

    def held(self, held: Held) -> None:
        """The run begins or goes on with this, or a checkpoint holds it now."""

    def ended(self, status: str) -> None:
        """The run has ended, for now or for good: `finished`, `diverged`, `interrupted`, ..."""

    def poll(self) -> bool:
        """Go on with what takes long; whether anything is left to do before the run can be closed."""

    def close(self) -> None:
        """Give up waiting for the rest; what has been sent stays."""


@dataclass
class Tracker(Component):
    """An option of `tracker=`; not part of a run's identity."""

    follows: ClassVar[bool] = True
    """Whether it has to be told anything."""

    def follow(self, followed: Followed, note: Callable[[str], None]) -> Follows | None:
        """Begin to follow a run; called in the followers' process. None where nobody follows it.

        Args:
            followed: the run.
            note: tells the user something in a line.
        """
        return None


trackers: Registry[Tracker] = Registry("tracker", "fl_hydra.tracking.trackers")
