"""One writer for each folder, with and without flock, whoever removes what."""

from __future__ import annotations

import errno
import fcntl
import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fl_hydra.processes import this_process
from fl_hydra.runs import ownership
from fl_hydra.runs.ownership import AFTER, OWNER, OwnershipLost, RunBusy, owned
from fl_hydra.training.client_store import ClientStore


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership, "HEARTBEAT", 0.02)
    monkeypatch.setattr(ownership, "STALE", 0.5)


@pytest.fixture(params=["flock", "ENOSYS", "EOPNOTSUPP", "ENOLCK"])
def locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """File systems with flock, and without."""
    if request.param != "flock":

        def without(descriptor: int, operation: int) -> None:
            raise OSError(getattr(errno, request.param), os.strerror(getattr(errno, request.param)))

        monkeypatch.setattr(fcntl, "flock", without)
    return str(request.param)


def no_notes(line: str) -> None:
    raise AssertionError(line)


def write_owner(folder: Path, name: str = OWNER, token: str = "theirs", **who: Any) -> Path:
    path = folder / name
    path.write_text(json.dumps({**asdict(replace(this_process(), **who)), "token": token}) + "\n000000000000\n")
    return path


ELSEWHERE = {"host": "elsewhere", "boot": "another"}


def dead_pid() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
        return process.pid


def test_an_owner_leaves_nothing_and_can_own_again(locks: str, tmp_path: Path) -> None:
    for _ in range(2):
        with owned(tmp_path, no_notes) as mine:
            mine.check()
            time.sleep(0.1)  # some beats
            mine.check()
        assert {path.name for path in tmp_path.iterdir()} <= {".lock"}


def test_a_second_owner_is_told_who_and_how_to_stop_it(locks: str, tmp_path: Path) -> None:
    program = f"""
import time, pathlib, fcntl
if {locks != "flock"}:
    def without(*_): raise OSError({getattr(errno, locks, 0)}, "")
    fcntl.flock = without
from fl_hydra.runs.ownership import owned
with owned(pathlib.Path({str(tmp_path)!r}), print):
    print("owns", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "owns\n"
        with (
            pytest.raises(RunBusy, match=rf"being written by process {other.pid} on .*stop it \(kill {other.pid}\)"),
            owned(tmp_path, no_notes),
        ):
            pass
        other.kill()
        other.wait()
        with owned(tmp_path, no_notes) as mine:  # a dead process owns nothing, at once
            mine.check()


@pytest.mark.parametrize("gone", ["dead", "another process with its number", "this process, which released it"])
def test_who_is_seen_to_be_gone_is_not_waited_for(gone: str, tmp_path: Path) -> None:
    cases: dict[str, dict[str, Any]] = {"dead": {"pid": dead_pid()}, "another process with its number": {"started": "1"}}
    who = cases.get(gone, {})
    write_owner(tmp_path, **who)
    with owned(tmp_path, no_notes) as mine:
        mine.check()


@pytest.mark.parametrize("who", [ELSEWHERE, {"boot": "the one before"}, {"namespace": "another container"}, {"boot": ""}, None])
def test_who_cannot_be_seen_is_watched_and_then_taken_over(who: dict[str, Any] | None, tmp_path: Path) -> None:
    path = write_owner(tmp_path, **(who or {}))
    if who is None:
        path.write_bytes(b"\x00damaged")
    notes: list[str] = []
    began = time.monotonic()
    with owned(tmp_path, notes.append) as mine:
        mine.check()
    assert time.monotonic() - began >= ownership.STALE
    assert len(notes) == 1 and "may still be written by" in notes[0]


def test_several_are_watched_at_once(tmp_path: Path) -> None:
    folders = [tmp_path / str(number) for number in range(6)]
    for folder in folders:
        folder.mkdir()
        write_owner(folder, token=f"theirs in {folder.name}", **ELSEWHERE)
    began = time.monotonic()
    for folder in folders:
        ownership.observe(folder)
    for folder in folders:
        with owned(folder, lambda line: None):
            pass
    assert time.monotonic() - began < 3 * ownership.STALE


def test_an_owner_elsewhere_that_shows_itself_keeps_its_folder(locks: str, tmp_path: Path) -> None:
    path = write_owner(tmp_path, **ELSEWHERE)
    first = path.read_bytes().partition(b"\n")[0]
    stop = threading.Event()

    def live() -> None:
        beat = 0
        while not stop.wait(0.05):
            beat += 1
            with open(path, "r+b") as file:
                file.write(first + f"\n{beat:012d}\n".encode())

    heart = threading.Thread(target=live)
    heart.start()
    try:
        with pytest.raises(RunBusy, match=r"process \d+ on elsewhere; .*kill \d+ on elsewhere"), owned(tmp_path, lambda line: None):
            pass
    finally:
        stop.set()
        heart.join()


def removed_owner(folder: Path) -> None:
    (folder / OWNER).unlink()


def removed_folder(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


def folder_made_again(folder: Path) -> None:
    removed_folder(folder)
    folder.mkdir()


def moved_folder(folder: Path) -> None:
    folder.rename(folder.with_name("moved"))


def taken_over(folder: Path) -> None:
    write_owner(folder, ".new", **ELSEWHERE).replace(folder / OWNER)


def damaged(folder: Path) -> None:
    (folder / OWNER).write_bytes(b"")


@pytest.mark.parametrize("what", [removed_owner, removed_folder, folder_made_again, moved_folder, taken_over, damaged])
@pytest.mark.parametrize("pause", [0.0, 0.1])
def test_an_owner_whose_token_is_gone_stops_and_disturbs_nobody(what: Any, pause: float, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with owned(folder, no_notes) as mine:
        what(folder)
        time.sleep(pause)  # seen by the next check, or by the heart before
        before = (folder / OWNER).read_bytes() if (folder / OWNER).exists() else None
        with pytest.raises(OwnershipLost):
            mine.check()
        time.sleep(0.05)
    assert ((folder / OWNER).read_bytes() if (folder / OWNER).exists() else None) == before


def test_two_processes_never_own_after_lock_and_token_are_removed(tmp_path: Path) -> None:
    with owned(tmp_path, no_notes) as first:
        (tmp_path / ".lock").unlink()
        with pytest.raises(RunBusy, match=f"kill {os.getpid()}"), owned(tmp_path, no_notes):
            pass
        first.check()
        (tmp_path / OWNER).unlink()
        (tmp_path / ".lock").unlink()
        with owned(tmp_path, no_notes) as second:
            second.check()
            with pytest.raises(OwnershipLost):
                first.check()


def contend(folder: str, start: Any, owners: Any) -> None:
    def without(descriptor: Any, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    fcntl.flock = without
    ownership.STALE, ownership.HEARTBEAT = 0.5, 0.05
    start.wait()
    try:
        with owned(Path(folder), lambda line: None) as mine:
            time.sleep(1.0)
            mine.check()
            owners.put(os.getpid())
    except RunBusy:
        pass


@pytest.mark.parametrize("claimed", [False, True])
@pytest.mark.parametrize("links", [True, False])
def test_of_many_who_take_over_at_once_one_succeeds(claimed: bool, links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without flock; also where the first successor died between its claim and the end, and where there are no hard links."""
    write_owner(tmp_path, **ELSEWHERE)
    if claimed:
        write_owner(tmp_path, f"{AFTER}theirs", token="its successor's", pid=dead_pid())
    if not links:

        def refuse(*paths: Any) -> None:
            raise OSError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)
    context = multiprocessing.get_context("fork")
    start, owners = context.Event(), context.Queue()
    processes = [context.Process(target=contend, args=(str(tmp_path), start, owners)) for _ in range(6)]
    for process in processes:
        process.start()
    start.set()
    for process in processes:
        process.join()
    assert owners.get(timeout=5)
    assert owners.empty()
    assert not list(tmp_path.glob(".owner*")) and not list(tmp_path.glob("*.tmp"))


def test_client_state_is_not_written_for_a_run_that_is_lost_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several files are written one after the other: each asks before it."""
    monkeypatch.setattr("fl_hydra.training.client_files.FILE_BYTES", 1)  # a file for each client
    store = ClientStore({"velocity": torch.zeros(1, 3, dtype=torch.float64)}, 4, tmp_path)
    rows = {"velocity": torch.ones(4, 3, dtype=torch.float64)}
    store.check_out(np.arange(4), 0, rows)
    rows["velocity"].add_(torch.arange(4)[:, None])
    asked: list[int] = []

    def check() -> None:
        asked.append(len(list(tmp_path.iterdir())))
        if len(asked) == 3:
            raise OwnershipLost("another process has it")

    store.check = check
    with pytest.raises(OwnershipLost):
        store.save()
    assert asked == [0, 1, 2]
