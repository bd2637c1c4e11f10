"""Checkpoints of a run: verified when they are read, the last two kept."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fl_hydra.files import CorruptFile, read_verified, write_verified

KEPT = 2


class Checkpoints:
    """The checkpoints of one run, named by round."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def rounds(self) -> list[int]:
        """Rounds after which there is a checkpoint, newest first."""
        names = (re.fullmatch(r"round-(\d{9})\.pt", path.name) for path in self.folder.glob("round-*.pt"))
        return sorted((int(name[1]) for name in names if name), reverse=True)

    def path(self, round: int) -> Path:
        """The file of the checkpoint after `round` rounds."""
        return self.folder / f"round-{round:09d}.pt"

    def save(self, round: int, content: dict[str, Any]) -> list[int]:
        """Write a checkpoint, then delete all but the last two; the rounds that are kept."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_verified(self.path(round), content)
        rounds = self.rounds()
        for old in rounds[KEPT:]:
            self.path(old).unlink(missing_ok=True)
        return rounds[:KEPT]

    def restore(self, use: Callable[[dict[str, Any]], None], warn: Callable[[str], None]) -> bool:
        """Hand the newest sound checkpoint to `use`; damaged ones are named, set aside as `*.damaged` and passed over.

        Args:
            use: takes a checkpoint's content; raises CorruptFile if something that it refers to is damaged.
            warn: is told about each damaged checkpoint.

        Returns:
            Whether there was a sound one.
        """
        for round in self.rounds():
            try:
                use(read_verified(self.path(round)))
                return True
            except CorruptFile as error:
                warn(f"checkpoint after round {round} cannot be used ({error}); falling back to the one before it")
                self.path(round).replace(self.path(round).with_suffix(".damaged"))
        return False
