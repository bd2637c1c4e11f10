"""Writes that fail, and odd files in the way."""

from __future__ import annotations

import builtins
import errno
import os
from pathlib import Path
from typing import Any

import pytest

from fl_hydra.runs import sections as sections_module
from fl_hydra.runs.execution import execute, execute_together
from fl_hydra.runs.folder import METRICS
from fl_hydra.runs.ownership import locked
from tests.support.folders import FEDAVG, LOCALSGD, Notes, folder_of, result, run


def failing(monkeypatch: pytest.MonkeyPatch, number: int, name: str, times: int, call: str = "fsync") -> list[str]:
    """`call` fails so many times on files whose name contains `name`; the paths that it failed on."""
    failed: list[str] = []
    original = getattr(os, call)

    def fails(descriptor: Any, *args: Any) -> Any:
        path = os.readlink(f"/proc/self/fd/{descriptor}") if isinstance(descriptor, int) else str(descriptor)
        if name in path and len(failed) < times and not os.path.isdir(path):
            failed.append(path)
            raise OSError(number, os.strerror(number), path)
        return original(descriptor, *args)

    monkeypatch.setattr(os, call, fails)
    return failed


PASSING = [("fsync", errno.EIO, name) for name in ("round-000000002", METRICS, "clients", "timings", ".owner")]
PASSING += [("replace", errno.ESTALE, name) for name in ("round-000000002", "summary", "environment", "config.yaml", ".owner")]


@pytest.mark.parametrize(("call", "number", "name"), PASSING)
def test_what_fails_in_passing_ends_no_run(call: str, number: int, name: str, settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = settings(*LOCALSGD, "rounds=3")
    with monkeypatch.context() as patch:
        failed = failing(patch, number, name, 2, call)
        outcome, _ = run(setting)
    assert outcome is not None and outcome.status == "finished"
    assert len(set(failed)) == len(failed), "a file that failed is never synced or renamed again"
    result(outcome.folder)
    assert not list(outcome.folder.rglob("*.tmp"))


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_before_a_run_is_given_up_what_is_in_memory_is_saved(
    number: int, whole: Any, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    command, expected, _ = whole
    setting = settings(*command, "checkpoint.seconds=999")
    with monkeypatch.context() as patch:
        failing(patch, number, METRICS, 10**6)
        outcome, _ = run(setting)
    assert outcome is not None and outcome.status == "failed" and os.strerror(number) in outcome.reason
    _, notes = run(setting)
    assert notes.rounds == [2], "the round after which the first row was due"
    assert result(folder_of(setting)) == expected


def test_files_for_the_reader_end_no_run(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = settings(*LOCALSGD)
    original = builtins.open

    def full(file: Any, *args: Any, **kwargs: Any) -> Any:
        if any(name in str(file) for name in ("timings", "environment")):
            raise OSError(errno.ENOSPC, "No space left on device", str(file))
        return original(file, *args, **kwargs)

    monkeypatch.setattr(builtins, "open", full)
    outcome, notes = run(setting)
    assert outcome is not None and outcome.status == "finished"
    assert len(notes.lines) == 1 and "continues without it" in notes.lines[0]


# Odd files


def put_folder(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.mkdir()
    (path / "inside").write_text("")


def put_pipe(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    os.mkfifo(path)


ODD = [(put_folder, name) for name in ("summary.json", METRICS, "config.yaml", ".lock", "error.txt")]
ODD += [(put_pipe, name) for name in ("summary.json", METRICS, "timings.jsonl", ".owner")]


@pytest.mark.parametrize(("put", "name"), ODD)
def test_odd_files_end_at_most_their_run_and_block_nothing(put: Any, name: str, settings: Any) -> None:
    setting, other = settings(*FEDAVG), settings(*FEDAVG, "seed=1")
    run(setting, killed_after=4)
    folder = folder_of(setting)
    put(folder / name)
    outcomes = execute_together([setting, other], Notes())
    assert outcomes[1].status == "finished"
    if outcomes[0].status == "finished":
        result(outcomes[0].folder)
        assert not (folder / name).is_fifo()
    else:
        assert outcomes[0].status == "failed" and name in outcomes[0].reason and "\n" not in outcomes[0].reason


def test_a_list_of_a_section_that_is_held_is_not_waited_for_for_ever(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from fl_hydra.errors import UserError

    monkeypatch.setattr(sections_module, "SECTION_SECONDS", 0.3)
    setting = settings(*FEDAVG, "section=mine")
    sections = Path(setting.outputs) / "sections"
    sections.mkdir(parents=True)
    notes = Notes()
    with locked(sections / "mine.lock", 0, notes.warn), pytest.raises(UserError, match="section=mine: another process has held"):
        execute(setting, notes)
    assert "waiting for another process that holds" in str(notes)
    assert run(setting)[0] is not None
