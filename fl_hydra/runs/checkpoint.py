"""Checkpoints of a run. They name the run that they belong to and are verified when they are read; the last two are kept."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from fl_hydra.files import CorruptFile, make_folder, read_verified, write_verified
from fl_hydra.runs.conditions import Conditions

KEPT = 2
FORMAT, READABLE = 3, (2, 3)
"""Format of a checkpoint's content, and those that can be read. Format 1 recorded neither its format nor its run; in format 2 each client
that keeps something had a file of its own."""
SET_ASIDE_KEPT = 1
"""How many damaged checkpoints are kept for inspection until the run has ended."""


@dataclass(frozen=True)
class Checkpoint:
    """What a run continues from.

    run: the hash of the run that it belongs to. config: of the part of its configuration that changes its result. conditions: what
    else determines its bits. environments: what it has been trained with so far, for information. trainer: from
    :meth:`fl_hydra.training.trainer.Trainer.checkpoint`. metrics, timings: all rows of metrics.jsonl and timings.jsonl. seconds: spent.
    """

    run: str
    config: dict[str, Any]
    conditions: Conditions
    environments: list[dict[str, Any]]
    trainer: dict[str, Any]
    metrics: str
    timings: str
    seconds: float

    @property
    def round(self) -> int:
        """The number of rounds before it."""
        return int(self.trainer["round"])

    @classmethod
    def of(cls, content: Any) -> Checkpoint:
        """From what a file holds.

        Raises:
            CorruptFile: it holds something else, or is of another version.
        """
        if not isinstance(content, dict):
            raise CorruptFile("it is no checkpoint")
        if (version := content.get("format", 1)) not in READABLE:
            raise CorruptFile(f"it is of format {version}, of another version of this program, which reads format {FORMAT}")
        try:
            values = {field.name: content[field.name] for field in fields(cls)}
            return cls(**{**values, "conditions": Conditions.of(values["conditions"])})
        except KeyError as error:
            raise CorruptFile(f"it has no {error.args[0]}") from error

    def content(self) -> dict[str, Any]:
        """What is written to a file."""
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        return {"format": FORMAT, **plain, "conditions": asdict(self.conditions)}


class Checkpoints:
    """The checkpoints of one run, named by round.

    Args:
        folder: where they lie.
        check: raises if this process may not write (any more).
        warn: is told about each that cannot be used.
    """

    def __init__(self, folder: Path, check: Callable[[], None] = lambda: None, warn: Callable[[str], None] = lambda line: None) -> None:
        self.folder = folder
        self._check, self._warn = check, warn

    def rounds(self) -> list[int]:
        """Rounds after which there is a checkpoint, newest first."""
        names = (re.fullmatch(r"round-(\d{9})\.pt", path.name) for path in self.folder.glob("round-*.pt"))
        return sorted((int(name[1]) for name in names if name), reverse=True)

    def path(self, round: int) -> Path:
        """The file of the checkpoint after `round` rounds."""
        return self.folder / f"round-{round:09d}.pt"

    def save(self, checkpoint: Checkpoint) -> list[int]:
        """Write a checkpoint, then delete all but the last two; the rounds that are kept.

        Raises:
            OwnershipLost, OSError: it was not written; those before it are still there.
        """
        self._check()
        make_folder(self.folder)  # it may have been removed
        write_verified(self.path(checkpoint.round), checkpoint.content())
        rounds = self.rounds()
        for old in rounds[KEPT:]:
            self._check()
            with suppress(OSError):
                self.path(old).unlink(missing_ok=True)
        return rounds[:KEPT]

    def newest(self) -> Checkpoint | None:
        """The newest readable one; unreadable ones are reported, set aside and skipped.

        Raises:
            OSError: one cannot be read at present, which says nothing about its content.
        """
        for round in self.rounds():
            try:
                checkpoint = Checkpoint.of(read_verified(self.path(round)))
                if checkpoint.trainer.get("round") != round:
                    raise CorruptFile(f"it was written after round {checkpoint.trainer.get('round')}")
                return checkpoint
            except CorruptFile as error:
                self.give_up(round, error)
        return None

    def give_up(self, round: int, why: Exception) -> None:
        """Set a checkpoint aside as `*.damaged`."""
        what = str(why) if isinstance(why, CorruptFile) else f"{type(why).__name__}: {' '.join(str(why).split())[:200]}"
        older = any(other < round for other in self.rounds())
        instead = "falling back to the one before it" if older else "there is none before it"
        self._warn(f"{self.path(round)}: this checkpoint cannot be used ({what}); {instead}")
        self._check()
        aside = self.path(round).with_suffix(".damaged")
        _remove(aside)
        self.path(round).replace(aside)
        for damaged in sorted(self.folder.glob("*.damaged"))[:-SET_ASIDE_KEPT]:
            _remove(damaged)

    def forget_damaged(self) -> None:
        """Delete what was set aside, once the run has ended."""
        for damaged in self.folder.glob("*.damaged"):
            self._check()
            _remove(damaged)


def check_fits(content: dict[str, Any], fresh: dict[str, Any]) -> None:
    """Compare what a checkpoint holds of a trainer with what it holds before its first round.

    Raises:
        CorruptFile: something is missing, or of another kind or shape.
    """
    import torch

    for name, value in fresh.items():
        if name not in content:
            raise CorruptFile(f"it has no {name}")
        other = content[name]
        if isinstance(value, torch.Tensor):
            like = isinstance(other, torch.Tensor) and (other.shape, other.dtype) == (value.shape, value.dtype)
        elif isinstance(value, dict):
            like = isinstance(other, dict)
            if like and name in ("state", "traffic"):  # what else is a dictionary grows from round to round
                check_fits(other, value)
        elif isinstance(value, int | float):
            like = isinstance(other, int | float) and not (isinstance(value, int) and isinstance(other, float))
        else:  # None, until there is something
            like = True
        if not like:
            raise CorruptFile(f"its {name} is of another kind or shape")


def _remove(path: Path) -> None:
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
