"""Pictures of clients: drawn for any configuration, and nothing is trained."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fl_hydra.pictures.__main__ import main
from fl_hydra.pictures.draw import draw_clients
from fl_hydra.report.figures.clients import relative
from fl_hydra.sharding.base import Shards
from fl_hydra.sharding.holdings import class_counts
from tests.support.make import PROJECT, experiment, write_shakespeare

TEXT = ("dataset=shakespeare", "dataset.users=4", "dataset.min_samples=900", "algorithm=fedavg", "K=4", "C=0.5")


@pytest.mark.parametrize(
    "overrides",
    [
        ("algorithm=fedavg", "K=20", "C=0.2", "sharding=classes", "N_c=2", "participation=skewed", "gamma=0.5"),
        ("algorithm=fedavg", "K=300", "sharding=dirichlet", "participation=cyclic", "rounds=30"),
        ("algorithm=fedavg", "K=20", "participation=power_of_choice"),
        ("algorithm=centralized",),
        TEXT,
        (*TEXT, "sharding=iid"),
        ("dataset=shakespeare_sequences", "algorithm=fedavg", "K=6", "C=0.5"),
    ],
)
def test_a_picture_of_any_configuration(overrides: tuple[str, ...], tmp_path: Path) -> None:
    write_shakespeare(tmp_path)
    path = tmp_path / "picture.png"
    draw_clients(experiment(*overrides, f"data={tmp_path}"), path)
    assert path.read_bytes()[:4] == b"\x89PNG"


def test_what_is_counted() -> None:
    shards = Shards.from_sizes(np.array([0, 3, 1, 2, 4]), np.array([2, 0, 3]))
    assert class_counts(shards, np.array([1, 0, 0, 1, 0]), 2).tolist() == [[0, 2], [0, 0], [3, 0]]


def test_a_character_that_a_client_never_uses_is_drawn_as_rare() -> None:
    counts, whole = np.array([[2.0, 6.0, 0.0], [0.0, 0.0, 0.0]]), np.array([0.5, 0.25, 0.25])
    drawn = relative(counts, whole)
    assert drawn[0].tolist() == [-1, 1, -1] and drawn[1].tolist() == [0, 0, 0]


def test_the_command_says_where_it_wrote_and_mistakes_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first as a process of its own; the others need not import all of it again."""
    words = ["algorithm=fedavg", "K=10", "C=0.2"]
    command = [sys.executable, "-m", "fl_hydra.pictures", *words, f"outputs={tmp_path}"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    (path,) = (tmp_path / "pictures").iterdir()
    assert done.returncode == 0 and str(path) in done.stdout and not done.stderr

    def status(*argv: str) -> int | str | None:
        monkeypatch.setattr(sys, "argv", ["pictures", *argv, f"outputs={tmp_path}"])
        try:
            main()
        except SystemExit as ended:
            return ended.code
        return 0

    assert status("-m", *words, "sharding=classes", "N_c=2,5", "panel=classes") == 0
    assert len(list((tmp_path / "pictures").glob("*-classes.png"))) == 1
    for mistake in (["panel=nothing"], ["panel=probabilities"], ["sharding=classes", "N_c=11"]):
        capsys.readouterr()
        assert status(*words, *mistake) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: {mistake[-1]}")
