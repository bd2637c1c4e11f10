"""What would run: dry runs, sections and their sizes, and how it is typed."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from fl_hydra.arguments import as_text, as_typed
from fl_hydra.errors import UserError
from fl_hydra.make import list_arguments, report_arguments
from fl_hydra.runs.folder import run_folders
from fl_hydra.runs.foresight import pace_key
from fl_hydra.runs.identity import describe
from fl_hydra.runs.sections import section_runs, sections
from fl_hydra.runs.status import all_standings
from fl_hydra.sweeping.grid import BUDGETS, with_own
from tests.conftest import Program
from tests.support.asking import GRID, TINY, content
from tests.support.make import PROJECT, experiment


def test_a_dry_run_says_what_there_is_to_do_and_does_nothing(program: Program, tmp_path: Path) -> None:
    dry = program(*GRID, "section=mine", "dry_run=true", cwd=tmp_path)
    assert dry.status == 0, dry.output
    assert "4 points, 4 runs: 4 to train" in dry.output
    assert "few rounds" in dry.output and "disk: about" in dry.output
    assert content(tmp_path) == set(), "nothing was written"

    killed = program(*GRID, "checkpoint.seconds=0", "section=mine", cwd=tmp_path, kill={"kind": "round", "n": 15})
    assert killed.status == -signal.SIGKILL
    before = {path: path.read_bytes() for path in content(tmp_path) if path.is_file()}
    dry = program(*GRID, "section=other", "dry_run=true", cwd=tmp_path)
    assert re.search(r"4 runs: 1 finished, 1 to resume, 2 to train", dry.output), dry.output
    assert re.search(r"to resume: J=4 seed=1 \(from [1-9]\d%\)", dry.output)
    assert "from runs of equal settings that were trained here" in dry.output, "of J=4"
    assert {path: path.read_bytes() for path in content(tmp_path) if path.is_file()} == before

    assert program(*GRID, cwd=tmp_path).status == 0
    dry = program(*GRID, "dry_run=true", cwd=tmp_path)
    assert "4 finished\n  nothing to train" in dry.output


def test_a_search_says_how_many_trials_are_missing(program: Program, tmp_path: Path) -> None:
    """And its trials are of no section."""
    search = ("-m", "hydra/sweeper=optuna", "algorithm=localsgd", "K=2", "J=4,8", *TINY, "optimizer.lr=tag(log,interval(1e-3,1))")
    dry = program(*search, "hydra.sweeper.n_trials=2", "section=mine", "dry_run=true", cwd=tmp_path)
    assert "2 studies of 2 trials: 0 trials ended, 4 missing" in dry.output, dry.output
    assert content(tmp_path) == set()
    assert program(*search, "hydra.sweeper.n_trials=2", "section=mine", cwd=tmp_path).status == 0
    dry = program(*search, "hydra.sweeper.n_trials=3", "section=mine", "dry_run=true", cwd=tmp_path)
    assert "2 studies of 3 trials: 4 trials ended, 2 missing" in dry.output, dry.output
    outputs = tmp_path / "outputs"
    assert len(run_folders(outputs)) == 4
    with pytest.raises(UserError, match="no run was asked for"):
        sections(outputs)
    assert [each.name for each in all_standings(outputs)] == ["(trials of searches)"]


def test_equal_paces_are_of_runs_that_differ_in_numbers_only() -> None:
    def key(*overrides: str) -> str:
        return pace_key(describe(experiment("algorithm=localsgd", "K=2", *overrides)))

    assert key("seed=1", "optimizer.lr=1", "epochs=3", "scheduler=constant") == key()
    for other in ("J=4", "batch_size=16", "precision=bf16", "model.filters=2", "optimizer=adamw", "optimizer.clip=1"):
        assert key(other) != key(), other


# Points with keys of their own


def test_points_have_their_own_keys_unless_these_are_typed() -> None:
    own: dict[str, Any] = {
        "dataset=shakespeare": {"sharding": "natural", "samples": 512},
        "sharding=dirichlet": {"sharding.alpha": 0.3},
        "algorithm=fedlc,dataset=shakespeare": None,
    }
    images = ["dataset=digits", "sharding=dirichlet", "epochs=3"]
    text = ["dataset=shakespeare", "sharding=dirichlet", "epochs=3"]
    assert with_own(images, own) == [*images, "sharding.alpha=0.3"]
    assert with_own(text, own) == ["dataset=shakespeare", "epochs=null", "rounds=null", "sharding=natural", "samples=512"], "in this order"
    assert with_own(text, own, BUDGETS) == ["dataset=shakespeare", "epochs=3", "sharding=natural"]
    assert with_own(["algorithm=fedlc", *text], own) is None and with_own(["algorithm=fedlc", *images], own) is not None
    assert with_own(["dataset=digits"], own) == ["dataset=digits"]


# Sizes


@pytest.mark.parametrize("path", sorted((PROJECT / "sweeps" / "sweep").glob("*/*.yaml")), ids=lambda path: path.stem)
def test_a_section_says_what_it_is_and_has_three_sizes(path: Path) -> None:
    head = path.read_text().partition("defaults:")[0]
    assert all(word in head for word in ("Question:", "Axes:", "Budget:", "Seed")), head
    content = OmegaConf.load(path)
    sizes = content.hydra.sweeper.sizes
    assert set(sizes) == {"short", "smoke"}
    for size in sizes.values():
        seeds = str(size.get("seed", content.hydra.sweeper.params.get("seed", "")))
        assert "," not in seeds or "at every size" in head, "one seed"
    assert sizes.smoke.get("dataset") == "digits" or "dataset.text" in sizes.smoke, "nothing is downloaded"


def test_a_size_is_narrowed_by_the_command_line_and_has_a_section_of_its_own(program: Program, tmp_path: Path) -> None:
    smoke = ("-m", "+sweep/track_a=localsgd", "size=smoke")
    result = program(*smoke, "K=2", "rounds=2", cwd=tmp_path)
    assert "2 of 2 points finished" in result.output, result.output
    assert sections(tmp_path / "outputs") == ["localsgd-smoke"]
    assert all("/K2-" in str(folder) and "-s1-" in folder.name for folder in section_runs("localsgd-smoke", tmp_path / "outputs"))
    assert program(*smoke, "size=tiny", cwd=tmp_path).status == 2
    assert "only sections have sizes" in program("-m", "size=smoke", "K=2,4", "algorithm=localsgd", cwd=tmp_path).output
    assert "this is a single run" in program("size=smoke", cwd=tmp_path).output


def test_the_shakespeare_that_comes_with_the_project_is_enough(program: Program, tmp_path: Path) -> None:
    dry = program("-m", "+sweep/track_b=shakespeare", "size=smoke", "dry_run=true", "samples=96", f"data={tmp_path}", cwd=tmp_path)
    assert "4 points, 4 runs: 4 to train" in dry.output, dry.output


def test_sections_at_smoke_size_end_well_only_if_all_points_do(tmp_path: Path) -> None:
    def smoke(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "fl_hydra.sweeping.smoke", *words, f"outputs={tmp_path}", "threads=1", "rounds=2"]
        return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)

    bad = smoke("localsgd", "fedavg", "K=4", "optimizer.lr=1e20")
    assert bad.returncode == 1, bad.stdout
    assert "failed: localsgd, fedavg" in bad.stdout, "the second one is not left out"
    assert smoke("nothing").returncode == 2


def test_make_passes_sizes_filters_and_orders_on() -> None:
    assert report_arguments(["localsgd", "size=smoke", "K=2", "outputs=x"]) == ["localsgd-smoke", "--outputs=x"]
    assert report_arguments(["localsgd", "size=smoke", "section=mine"]) == ["mine"]
    assert list_arguments(["list"], ["FILTER=K=2 optimizer.lr<0.1", "SORT=-val/acc", "outputs=x", "J=4"]) == [
        "list",
        "K=2",
        "optimizer.lr<0.1",
        "--sort=-val/acc",
        "--outputs=x",
        "J=4",
    ]


# What is typed is shown as a shell takes it


@pytest.mark.parametrize(
    ("override", "typed"),
    [
        ("optimizer.lr=tag(log,interval(1e-3,1))", "'optimizer.lr=tag(log,interval(1e-3,1))'"),
        ("K=2", "K=2"),
        ("algorithm.momentum='keep'", "algorithm.momentum=keep"),
        ("section='a b'", "'section=a b'"),
        ("tune.seeds=[100,101]", "'tune.seeds=[100,101]'"),
    ],
)
def test_overrides_are_shown_as_they_are_typed(override: str, typed: str) -> None:
    assert as_typed(override) == typed
    if "momentum" in override:
        assert as_text(typed) == override
