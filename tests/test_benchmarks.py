"""The benchmark's short form, and that of the tables: everything in them runs. They say nothing of speed, and cannot fail on it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gpu_tables
from tests.support.make import PROJECT

SECTIONS = ("rounds", "overhead", "levers", "profile", "throughput", "packed", "evaluation", "hypernetwork", "cohorts")
"""All but those that start processes of their own or build hundreds of thousands of shards."""


def test_the_benchmark_runs_and_writes_its_figures(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    command = [sys.executable, "-m", "benchmarks.bench", "--short", "--json", str(path), "--only", *SECTIONS]
    alone = os.environ | {"OMP_NUM_THREADS": "1"}  # other tests run beside it
    done = subprocess.run(command, cwd=PROJECT, env=alone, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(path.read_text())
    assert tuple(found["sections"]) == SECTIONS
    assert all(row["ms"] >= 0 for section in found["sections"].values() for row in section["rows"])
    assert found["sections"]["packed"]["ratios"].keys() == {
        "packed 1: together / one after the other",
        "packed 2: together / one after the other",
    }


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    gpu_tables.small_data(folder)
    return folder


def test_every_figure_of_the_tables_is_a_run_of_its_own(small: Path) -> None:
    figures = gpu_tables.figures()
    assert len({figure.name for figure in figures}) == len({figure.overrides for figure in figures}) == len(figures)
    assert {figure.section for figure in figures} == set(gpu_tables.SECTIONS)
    for figure in figures:
        text = figure.section == "shakespeare"  # of which a small one has too few users
        (run,) = gpu_tables.experiments(figure, small, tiny=text, seeds=(1,))
        assert run.seed == 1
        if not text:
            federated = figure.section in ("fedavg", "heterogeneity")
            assert run.precision == "bf16"
            assert run.budget == (5_120_000 if federated else 150 * run.train_samples), figure.name


def test_figures_are_kept_and_not_trained_again(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As many figures as there was time for, then the others; and a row of the tables for each."""
    chosen = [
        figure for figure in gpu_tables.figures() if figure.name in ("fedavg: N_c=5, lr 0.05, wd 1e-3", "slowmo: K=2, J=32, beta 0.6")
    ]
    out = tmp_path / "tables.json"

    def run(figures: list[gpu_tables.Figure], seconds: float = 1e9) -> list[str]:
        assert gpu_tables.run_all(figures, small, out, seconds=seconds, engine=None, tiny=True) == 0
        return capsys.readouterr().out.splitlines()

    run(chosen[:1])
    first = json.loads(out.read_text())["figures"]
    assert run(chosen, seconds=0)[1].endswith("no time left")
    assert run(chosen)[0].endswith("finished before")
    figures = json.loads(out.read_text())["figures"]
    assert figures[:1] == first and [each["name"] for each in figures] == [figure.name for figure in chosen]
    for each in figures:
        assert each["seeds"] == [1, 2, 3] and len(set(each["train/loss"])) == 3
        assert all(0 <= accuracy <= 1 for accuracy in each["test/acc"])
    table = gpu_tables.tables(figures)
    assert "| N_c=5, lr 0.05, wd 1e-3 |" in table and "| K=2, J=32, beta 0.6 |" in table and "Not trained yet: iid" in table


def test_a_figure_that_cannot_end_in_time_is_given_up(small: Path) -> None:
    figure = next(figure for figure in gpu_tables.figures() if figure.section == "slowmo")
    with pytest.raises(gpu_tables.TooLate):
        gpu_tables.train(gpu_tables.experiments(figure, small, tiny=True), "stacked", deadline=0.0)
