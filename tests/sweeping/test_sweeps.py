"""Sweeps: stopped, continued, shared, and with points that fail."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from fl_hydra.runs.execution import execute
from tests.conftest import Program
from tests.support.folders import Notes
from tests.support.kills import LOCALSGD, SMALL, half_done, run_folder
from tests.support.make import config


def test_the_second_process_on_one_run_says_that_it_is_being_written(program: Program, tmp_path: Path) -> None:
    """The first is this one. (Of two whole processes, the chaos campaign says the same.)"""
    command = ("algorithm=fedavg", "K=10", "rounds=7", "threads=1", f"outputs={tmp_path / 'outputs'}")
    answers = []

    class Asking(Notes):
        def advanced(self, round: int, done: float) -> None:
            if round == 3:
                answers.append(program(*command, cwd=tmp_path))

    outcome = execute(config(*command), Asking())
    (second,) = answers
    assert second.status == 1
    assert f"is being written by process {os.getpid()}" in second.output
    assert outcome.status == "finished"


def test_a_dead_process_holds_no_lock(program: Program, tmp_path: Path) -> None:
    half_done(program, tmp_path)
    assert program(*LOCALSGD, cwd=tmp_path).status == 0


DIVERGING = ("algorithm=fedavg", "K=10", "C=0.5", "J=20", "rounds=40", "optimizer.momentum=0.9")


def test_divergence_ends_a_run_and_keeps_its_metrics(program: Program, tmp_path: Path) -> None:
    result = program(*DIVERGING, "optimizer.lr=1e6", cwd=tmp_path)
    assert result.status == 1
    assert "diverged" in result.output
    assert "optimizer.lr" in result.output
    folder = run_folder(tmp_path)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert rows
    assert rows[-1]["train/loss"] is None
    assert json.loads((folder / "summary.json").read_text())["status"] == "diverged"
    again = program(*DIVERGING, "optimizer.lr=1e6", cwd=tmp_path)
    assert again.status == 1
    assert "diverged" in again.output


SWEEP = ("-m", "algorithm=localsgd", "K=2,4", "J=2,3", "epochs=3", "batch_size=32")


def test_a_stopped_sweep_skips_what_is_finished_and_resumes_the_rest(program: Program, tmp_path: Path) -> None:
    stopped = program(*SWEEP, "checkpoint.seconds=0", cwd=tmp_path, kill={"kind": "round", "n": 40})
    assert stopped.status == -signal.SIGKILL
    finished = {path.parent.name: path.stat().st_mtime_ns for path in tmp_path.rglob("summary.json")}
    assert 0 < len(finished) < 4
    again = program(*SWEEP, cwd=tmp_path)
    assert again.status == 0, again.output
    assert "resumed at round" in again.output
    assert again.output.count("finished before") == len(finished)
    assert "4 of 4 points finished" in again.output
    for path in tmp_path.rglob("summary.json"):
        assert finished.get(path.parent.name, path.stat().st_mtime_ns) == path.stat().st_mtime_ns
    samples = [json.loads(path.read_text())["metrics"]["samples"] for path in tmp_path.rglob("summary.json")]
    assert samples == [3 * 1295] * 4


def test_a_sweep_goes_on_after_a_divergence_and_lists_it(program: Program, tmp_path: Path) -> None:
    result = program("-m", *DIVERGING, "optimizer.lr=1e6,0.01", cwd=tmp_path)
    assert result.status == 1
    assert "1 of 2 points finished" in result.output
    assert "optimizer.lr=1e6: diverged: " in result.output.replace("1000000.0", "1e6")


def test_a_stopped_sweep_says_how_to_go_on(program: Program, tmp_path: Path) -> None:
    stopped = program(*SWEEP, cwd=tmp_path, asks=[signal.SIGINT, 4])
    assert stopped.status == 128 + signal.SIGINT
    assert "train.py threads=1 outputs=outputs -m algorithm=localsgd K=2,4 J=2,3" in stopped.output


def test_a_signal_in_the_last_round_of_a_point_stops_the_sweep(program: Program, tmp_path: Path) -> None:
    stopped = program("-m", "rounds=1", "seed=1,2,3", cwd=tmp_path, asks=[signal.SIGINT, 0])
    assert stopped.status == 128 + signal.SIGINT
    assert len(list(tmp_path.rglob("summary.json"))) == 1


def test_threads_that_differ_are_noted_and_do_not_leak_into_other_points(program: Program, tmp_path: Path) -> None:
    program("algorithm=localsgd", "epochs=9", "threads=1", "checkpoint.seconds=0", cwd=tmp_path, kill={"kind": "round", "n": 2})
    again = program("algorithm=localsgd", "epochs=9", "threads=2", cwd=tmp_path)
    assert "begun with threads=1 and goes on with 2" in again.output
    environment = json.loads((run_folder(tmp_path) / "environment.json").read_text())
    assert (environment["threads"], environment["continued_with"][0]["threads"]) == (1, 2)


def test_points_that_are_one_run_are_trained_once(program: Program, tmp_path: Path) -> None:
    result = program("-m", "algorithm=fedavg", "K=5", "rounds=2", "gamma=0.1,1", cwd=tmp_path)
    assert result.status == 0
    assert "gamma=0.1 has no effect here" in result.output
    assert len(list(tmp_path.rglob("summary.json"))) == 1
    assert "2 of 2 points finished" in result.output


def test_sections_share_runs(program: Program, tmp_path: Path) -> None:
    program("epochs=1", "section=one", cwd=tmp_path)
    other = program("epochs=1", "section=two", cwd=tmp_path)
    assert "finished before" in other.output
    assert (tmp_path / "outputs/sections/one.txt").read_text() == (tmp_path / "outputs/sections/two.txt").read_text()
    program("-m", "epochs=1", "seed=1,0", "section=three", cwd=tmp_path)
    three = tmp_path / "outputs/sections/three.txt"
    runs = three.read_text()
    assert len(runs.splitlines()) == 2
    three.write_bytes(f"{runs}{runs}".encode() + bytes(100))
    again = program("-m", "epochs=1", "seed=1,0", "section=three", cwd=tmp_path)
    assert "taken out of the section's list (3 of 5 lines)" in again.output and three.read_text() == runs


def test_what_does_not_change_the_result_does_not_change_the_name(program: Program, tmp_path: Path) -> None:
    program("epochs=1", cwd=tmp_path)
    for same in ("engine=loop", "device=cpu", "checkpoint.seconds=3", "samples=1295", "section=x"):
        arguments = [same] if same == "samples=1295" else ["epochs=1", same]
        assert "finished before" in program(*arguments, cwd=tmp_path).output, same
    for other in ("precision=fp64", "evaluation.points=7", "seed=1", "split_seed=1", "dataset.crop=0", "optimizer.momentum=0.8"):
        assert "finished before" not in program("epochs=1", other, cwd=tmp_path).output, other


@pytest.mark.parametrize("launcher", [(), ("hydra/launcher=packed",)])
def test_an_odd_folder_is_one_points_failure(launcher: tuple[str, ...], program: Program, tmp_path: Path) -> None:
    grid = ("-m", *launcher, "rounds=1", *SMALL, "seed=0,1,2,3")
    assert program(*grid, cwd=tmp_path).status == 0
    folders = sorted(path.parent for path in tmp_path.rglob("summary.json"))
    for folder in folders[:3]:
        (folder / "summary.json").unlink()
    (folders[0] / "summary.json").mkdir()
    os.mkfifo(folders[1] / "summary.json")
    shutil.rmtree(folders[2])
    shutil.copytree(folders[3], folders[2])
    again = program(*grid, cwd=tmp_path)
    assert again.status == 1
    assert "1 of 4 points finished" in again.output
    assert again.output.count(": failed: ") == 3 and "Traceback" not in again.output
    assert again.output.count("where a file should be") == 2 and again.output.count("holds another run") == 1
