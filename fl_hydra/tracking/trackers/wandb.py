"""Weights & Biases."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from fl_hydra.errors import require
from fl_hydra.tracking.trackers.base import Followed, Follows, Tracker, trackers

MODES = ("online", "offline")
NAME = r"[A-Za-z0-9_.-]{1,128}"


@trackers.register
@dataclass
class Wandb(Tracker):
    """A run of W&B for each run, its rows as history, its checkpoints as artifacts."""

    name: str = "wandb"
    project: str = "fl-hydra"
    """W&B project; letters, digits, `_`, `-` and `.`."""
    entity: str | None = None
    """User or team; None: whom the key belongs to."""
    mode: str = "online"
    """`online`, which becomes offline where W&B cannot be reached, or `offline`; `make sync` uploads what is missing."""
    artifact_minutes: float | None = 15.0
    """Between uploads of checkpoints, beside the last one of a run; None: checkpoints are not uploaded."""
    tags: list[str] = field(default_factory=list)
    """Further tags of the runs."""

    def __post_init__(self) -> None:
        for key, value in (("project", self.project), ("entity", self.entity)):
            require(
                value is None or bool(re.fullmatch(NAME, value)),
                f"tracker.{key}={value}: at most 128 letters, digits, _, - and . are allowed, no spaces; as in "
                f"tracker.{key}={re.sub(r'[^A-Za-z0-9_.-]+', '-', value or '').strip('-')[:128] or 'fl-hydra'}",
            )
        require(self.mode in MODES, f"tracker.mode={self.mode}: choose {' or '.join(MODES)}; tracker=none turns tracking off")
        require(
            self.artifact_minutes is None or self.artifact_minutes >= 0,
            f"tracker.artifact_minutes={self.artifact_minutes}: must be 0 (every checkpoint) or more; null uploads none",
        )
        require(all(0 < len(tag) <= 64 for tag in self.tags), f"tracker.tags={self.tags}: a tag has 1 to 64 characters")

    def follow(self, followed: Followed, note: Callable[[str], None]) -> Follows:
        from fl_hydra.tracking.wandb_run import WandbRun, connection

        return WandbRun(self, followed, connection(self, followed.outputs, note), note)
