"""The report reads only what runs wrote."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

from fl_hydra.report.runs import by_setting, mean_and_deviation, read_runs
from tests.conftest import Program
from tests.support.make import PROJECT


def report(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fl_hydra.report", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env={"PYTHONPATH": str(PROJECT), "PATH": ""}, check=False)


def test_section_becomes_a_figure_and_a_table_over_seeds(program: Program, tmp_path: Path) -> None:
    assert program("-m", "section=mine", "algorithm=localsgd", "K=2", "J=2,4", "seed=0,1", "epochs=2", cwd=tmp_path).status == 0
    assert program("-m", "section=mine", "algorithm=localsgd", "K=2", "J=2,4", "seed=0,1", "epochs=2", cwd=tmp_path).status == 0
    done = report("mine", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "outputs/report/mine.png").read_bytes().startswith(b"\x89PNG")
    with open(tmp_path / "outputs/report/mine.csv") as file:
        rows = list(csv.DictReader(file))
    assert [(row["setting"], row["seeds"]) for row in rows] == [("LocalSGD K=2 J=2, iid", "2"), ("LocalSGD K=2 J=4, iid", "2")]
    runs = read_runs([path.parent for path in sorted(tmp_path.rglob("summary.json"))])
    group = next(group for _, group in by_setting(runs) if group[0].config["J"] == 2)
    expected = mean_and_deviation([run.rows[-1]["test/acc"] for run in group], 100)
    assert rows[0]["test acc %"] == expected
    assert " ± " in expected


def test_every_run_is_listed(program: Program, tmp_path: Path) -> None:
    program("epochs=1", cwd=tmp_path)
    program("epochs=30", "checkpoint.seconds=0", cwd=tmp_path, kill={"kind": "round", "n": 5})
    done = report("--list", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "finished" in done.stdout
    assert "not finished" in done.stdout


def test_unknown_section_is_one_line(tmp_path: Path) -> None:
    done = report("nothing", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no run was asked for with section=nothing")
    assert done.stderr.count("\n") == 1


def test_mean_and_deviation() -> None:
    assert mean_and_deviation([0.5], 100) == "50.00"
    assert mean_and_deviation([0.4, 0.6], 100) == "50.00 ± 14.14"
    assert mean_and_deviation([0.4, None]) == ""
