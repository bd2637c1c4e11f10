"""Checkpoints that cannot be used."""

from __future__ import annotations

import builtins
import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fl_hydra.files import read_verified, write_verified
from fl_hydra.runs import checkpoint as checkpoint_module
from fl_hydra.training.trainer import Trainer
from tests.support.folders import FEDAVG, flipped, folder_of, result, run


def without(name: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        content = read_verified(path)
        target = content if name in content else content["trainer"]
        del target[name]
        write_verified(path, content)

    return damage


def with_value(value: Any, *names: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        content = read_verified(path)
        target = content
        for name in names[:-1]:
            target = target[name]
        target[names[-1]] = value
        write_verified(path, content)

    return damage


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "inside").write_text("")


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def an_older_one(path: Path) -> None:
    shutil.copy(min(path.parent.glob("round-*.pt")), path)


UNUSABLE = {
    **{f"without {name}": without(name) for name in ("run", "conditions", "metrics", "state", "clients", "cursors")},
    "format": with_value(99, "format"),
    "no engine": with_value("warp", "conditions", "engine"),
    "model": with_value(torch.zeros(1), "trainer", "state", "model"),
    "a state more": with_value({"model": torch.zeros(3), "server": 1}, "trainer", "state"),
    "traffic": with_value({}, "trainer", "traffic"),
    "cursors of others": with_value(torch.zeros(99, dtype=torch.int64), "trainer", "cursors"),
    "clients of others": with_value({99: (1, "0" * 16)}, "trainer", "clients"),
    "memory": with_value(3, "trainer", "memory"),
    "rows": with_value("{torn", "metrics"),
    "a list": lambda path: write_verified(path, [1, 2]) and None,
    "a folder": a_folder,
    "a pipe": a_pipe,
    "an older one": an_older_one,
}


@pytest.mark.parametrize("damage", UNUSABLE)
def test_a_sealed_checkpoint_that_cannot_be_used_falls_back_to_the_one_before(damage: str, settings: Any, whole: Any) -> None:
    command, expected, _ = whole
    setting = settings(*command)
    run(setting, killed_after=4)
    folder = folder_of(setting)
    UNUSABLE[damage](folder / "checkpoints" / "round-000000004.pt")
    _, notes = run(setting)
    assert "falling back to the one before" in str(notes)
    assert notes.rounds == [3]
    assert result(folder) == expected
    assert not list(folder.rglob("*.damaged")), "nothing is left behind when it has ended"


def test_a_restore_that_fails_half_way_leaves_nothing(whole: Any, settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    command, expected, _ = whole
    setting = settings(*command)
    run(setting, killed_after=4)
    original, failures = Trainer.restore, []

    def fails(self: Trainer, content: dict[str, Any], run: int = 0) -> None:
        original(self, content, run)
        if content["round"] > 0:
            failures.append(content["round"])
            raise KeyError("something")

    monkeypatch.setattr(Trainer, "restore", fails)
    _, notes = run(setting)
    assert failures == [4, 3] and notes.rounds == [0]
    assert "there is none before it" in str(notes)
    assert result(folder_of(setting)) == expected


def test_what_cannot_be_read_now_is_not_given_up(whole: Any, settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    command, expected, _ = whole
    setting = settings(*command)
    run(setting, killed_after=4)
    original = builtins.open

    def flaky(file: Any, *args: Any, **kwargs: Any) -> Any:
        if str(file).endswith(".pt"):
            raise OSError(errno.EIO, "Input/output error", str(file))
        return original(file, *args, **kwargs)

    monkeypatch.setattr(builtins, "open", flaky)
    outcome, _ = run(setting)
    monkeypatch.undo()
    assert outcome is not None and outcome.status == "failed" and "the last checkpoint is kept" in outcome.reason
    _, notes = run(setting)
    assert notes.rounds == [4] and not notes.lines
    assert result(folder_of(setting)) == expected


# Litter


def test_one_damaged_checkpoint_is_kept_until_the_run_has_ended(settings: Any) -> None:
    setting = settings(*FEDAVG)
    for killed_after in (2, 3, 4):
        run(setting, killed_after=killed_after)
        newest = max((folder_of(setting) / "checkpoints").glob("round-*.pt"))
        newest.write_bytes(flipped(newest.read_bytes()))
    run(setting, killed_after=5)
    assert len(list(folder_of(setting).rglob("*.damaged"))) == checkpoint_module.SET_ASIDE_KEPT
    run(setting)
    assert not list(folder_of(setting).rglob("*.damaged"))
