"""Runs of which folders are damaged, and what must not differ afterwards."""

from __future__ import annotations

import hashlib
import random
import shutil
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from fl_hydra.config import Config
from fl_hydra.files import read_verified
from fl_hydra.runs.execution import execute
from fl_hydra.runs.folder import METRICS
from fl_hydra.runs.outcome import Outcome
from fl_hydra.runs.summary import read_ended
from fl_hydra.training.trainer import Trainer
from tests.support.make import config

TINY = ("model.filters=1", "model.hidden=2", "batch_size=16", "evaluation.points=4", "checkpoint.seconds=0", "engine=stacked", "threads=1")
LOCALSGD = ("algorithm=localsgd", "K=3", "J=4", "optimizer=adamw", "rounds=6", *TINY)
"""Whose workers keep state."""
FEDAVG = ("algorithm=fedavg", "K=10", "C=0.3", "J=2", "rounds=6", *TINY)


class Notes:
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.rounds: list[int] = []

    def started(self, runs: Sequence[tuple[Any, Path, int, float]]) -> None:
        self.rounds += [round for _, _, round, _ in runs]

    def advanced(self, round: int, done: float) -> None: ...
    def evaluated(self, rows: Sequence[Any]) -> None: ...
    def ended(self) -> None: ...

    def warn(self, message: str) -> None:
        assert "\n" not in message
        self.lines.append(message)

    def __str__(self) -> str:
        return "\n".join(self.lines)


class Killed(BaseException):
    """The process ends here."""


composed = lru_cache(config)


def run(setting: Config, killed_after: int | None = None) -> tuple[Outcome | None, Notes]:
    """A run to its end, or until it is killed after some rounds."""
    notes, original = Notes(), Trainer.run_round

    def counted(self: Trainer) -> None:
        if self.runs[0].round == killed_after:
            raise Killed
        original(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "run_round", counted)
        try:
            outcome = execute(setting, notes)
        except Killed:
            return None, notes
    assert killed_after is None, outcome
    return outcome, notes


def folder_of(setting: Config) -> Path:
    (found,) = Path(setting.outputs).glob("*/*/*/config.yaml")
    return found.parent


def result(folder: Path) -> tuple[str, bytes]:
    """What must not differ: the final weights and every row, which agree with the summary."""
    ended = read_ended(folder)
    assert ended is not None and ended.summary["status"] == "finished"
    newest = max((folder / "checkpoints").glob("round-*.pt"))
    weights = read_verified(newest)["trainer"]["state"]["model"].numpy().tobytes()
    assert hashlib.sha256(weights).hexdigest() == ended.summary["weights_sha256"]
    return ended.summary["weights_sha256"], (folder / METRICS).read_bytes()


def copied(whole: Path, setting: Config) -> Path:
    """The finished folder, where `setting` looks for it."""
    target = Path(setting.outputs) / whole.relative_to(whole.parents[2])
    shutil.copytree(whole, target)
    return target


def flipped(content: bytes) -> bytes:
    at = random.Random(len(content)).randrange(len(content))
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
