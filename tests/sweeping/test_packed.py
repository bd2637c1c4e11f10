"""The launcher that trains points together."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Program

GRID: tuple[str, ...] = (
    "-m",
    "hydra/launcher=packed",
    "algorithm=localsgd",
    "K=3",
    "J=4",
    "epochs=3",
    "batch_size=16",
    "evaluation.points=3",
)
GRID += ("checkpoint.seconds=0",)


def finals(outputs: Path) -> dict[str, dict[str, Any]]:
    found = {}
    for path in outputs.rglob("summary.json"):
        summary = json.loads(path.read_text())
        found[path.parent.name] = {name: summary[name] for name in ("status", "weights_sha256", "metrics_sha256")}
    return found


def test_a_packed_grid_is_the_grid(program: Program, tmp_path: Path) -> None:
    points = ["seed=0,1", "optimizer.lr=0.01,0.05", "N_c=null"]
    grid = [word.replace("epochs=3", "epochs=0.7") for word in GRID]
    packed = program(*grid, *points, "outputs=packed", cwd=tmp_path)
    assert packed.status == 0, packed.output
    assert "4 runs together:" in packed.output
    assert "4 of 4 points finished" in packed.output
    alone = program(*(word for word in grid if "launcher" not in word), *points, "outputs=alone", cwd=tmp_path)
    assert alone.status == 0, alone.output
    assert finals(tmp_path / "packed") == finals(tmp_path / "alone"), "bit for bit"
    again = program(*grid, *points, "outputs=packed", cwd=tmp_path)
    assert again.status == 0
    assert again.output.count("finished before") == 4


@pytest.mark.parametrize(("kind", "n"), [("round", 9), ("replace", 29), ("write", 54)])
def test_a_killed_pack_resumes_and_its_points_go_on_alone_or_together(kind: str, n: int, program: Program, tmp_path: Path) -> None:
    """Also where it was killed while its members were saved one by one, so that they go on from different rounds."""
    points = ["seed=0,1,2"]
    whole = program(*GRID, *points, "outputs=whole", cwd=tmp_path)
    assert whole.status == 0, whole.output
    killed = program(*GRID, *points, "outputs=killed", cwd=tmp_path, kill={"kind": kind, "n": n})
    assert killed.status == -signal.SIGKILL
    alone = program(*(word for word in GRID[2:]), "seed=1", "outputs=killed", cwd=tmp_path)
    assert alone.status == 0, alone.output
    assert "resumed at round" in alone.output
    rest = program(*GRID, *points, "outputs=killed", cwd=tmp_path)
    assert rest.status == 0, rest.output
    assert "2 runs together:" in rest.output
    assert rest.output.count("resumed at round") == 2
    rounds = {int(number) for number in re.findall(r"resumed at round (\d+)", alone.output + rest.output)}
    assert (len(rounds) > 1) == (kind != "round")
    assert finals(tmp_path / "whole") == finals(tmp_path / "killed"), "bit for bit"


def test_a_signal_stops_a_pack_with_everything_saved(program: Program, tmp_path: Path) -> None:
    stopped = program(*GRID, "seed=0,1", cwd=tmp_path, asks=(signal.SIGTERM, 4))
    assert stopped.status == 128 + signal.SIGTERM, stopped.output
    assert "run the same command again" in stopped.output
    again = program(*GRID, "seed=0,1", cwd=tmp_path)
    assert again.status == 0, again.output
    assert again.output.count("resumed at round 5") == 2


def test_divergence_and_a_lock_take_one_member_out(program: Program, tmp_path: Path) -> None:
    result = program(*GRID, "optimizer.lr=0.05,1e6,0.01", cwd=tmp_path)
    assert result.status == 1
    assert "2 of 3 points finished" in result.output
    assert "diverged" in result.output
    statuses = sorted(run["status"] for run in finals(tmp_path / "outputs").values())
    assert statuses == ["diverged", "finished", "finished"]


def test_a_member_that_cannot_be_written_leaves_the_others(program: Program, tmp_path: Path) -> None:
    probe = program(*GRID, "seed=0,1", "outputs=probe", cwd=tmp_path)
    assert probe.status == 0
    name = next(path.parent.name for path in (tmp_path / "probe").rglob("summary.json") if "-s1-" in path.parent.name)
    blocked = tmp_path / "outputs" / "digits" / "localsgd" / name / "metrics.jsonl"
    blocked.mkdir(parents=True)
    result = program(*GRID, "seed=0,1", cwd=tmp_path)
    assert result.status == 1, result.output
    assert "1 of 2 points finished" in result.output
    assert "failed" in result.output


def test_a_folder_that_cannot_be_made_leaves_the_others(program: Program, tmp_path: Path) -> None:
    assert program(*GRID, "seed=0,1", "outputs=probe", cwd=tmp_path).status == 0
    name = next(path.parent.name for path in (tmp_path / "probe").rglob("summary.json") if "-s0-" in path.parent.name)
    blocked = tmp_path / "outputs" / "digits" / "localsgd" / name
    blocked.parent.mkdir(parents=True)
    blocked.write_text("a file")
    result = program(*GRID, "seed=0,1", cwd=tmp_path)
    assert result.status == 1, result.output
    assert "1 of 2 points finished" in result.output
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "sections").write_text("a file")
    section = program(*GRID, "seed=0,1", "section=mine", "outputs=other", cwd=tmp_path)
    assert section.status == 2
    assert section.output.count("\n") == 1, section.output
    assert "section=mine: " in section.output and "other/sections/mine.txt cannot be written" in section.output
    file = program(*GRID, "seed=0,1", "outputs=other/sections", cwd=tmp_path)
    assert file.status == 2 and "other/sections is not a folder; choose another (at all 2 points" in file.output, file.output


def test_options_of_the_launcher_are_checked(program: Program, tmp_path: Path) -> None:
    result = program(*GRID, "hydra.launcher.runs=0", "seed=0,1", cwd=tmp_path)
    assert result.status == 2
    assert "hydra.launcher.runs=0: a whole number of runs, at least 1, is needed in a pack" in result.output
    word = program(*GRID, "hydra.launcher.runs=x", "seed=0,1", cwd=tmp_path)
    assert word.status == 2
    assert "hydra.launcher.runs=x: a whole number" in word.output
    single = program("hydra/launcher=packed", "rounds=1", cwd=tmp_path)
    assert single.status == 0
    assert "note: hydra/launcher=packed packs the points of a sweep" in single.output
    split = program(*GRID, "hydra.launcher.runs=2", "seed=0,1,2", cwd=tmp_path)
    assert split.status == 0
    assert split.output.count("2 runs together:") == 1
