"""The benchmark's short form: everything in it runs. It says nothing of speed, and cannot fail on it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.support.make import PROJECT

SECTIONS = ("rounds", "overhead", "levers", "profile", "throughput", "packed", "evaluation", "cohorts")
"""All but those that start processes of their own or build hundreds of thousands of shards."""


def test_the_benchmark_runs_and_writes_its_figures(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    command = [sys.executable, "-m", "benchmarks.bench", "--short", "--json", str(path), "--only", *SECTIONS]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(path.read_text())
    assert tuple(found["sections"]) == SECTIONS
    assert all(row["ms"] >= 0 for section in found["sections"].values() for row in section["rows"])
    assert found["sections"]["packed"]["ratios"].keys() == {
        "packed 1: together / one after the other",
        "packed 3: together / one after the other",
    }
