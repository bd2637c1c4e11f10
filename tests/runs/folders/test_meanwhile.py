"""Folders that are removed or changed while a run is written, and the conditions that a run goes on under."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fl_hydra.config import Config
from fl_hydra.files import read_verified, write_verified
from fl_hydra.runs.execution import execute_together
from fl_hydra.runs.folder import METRICS
from fl_hydra.training.trainer import Trainer
from tests.support.folders import LOCALSGD, Notes, flipped, folder_of, result, run


def remove_all(folder: Path) -> None:
    shutil.rmtree(folder)


def make_anew(folder: Path) -> None:
    shutil.rmtree(folder)
    (folder / "checkpoints").mkdir(parents=True)


def remove_owner(folder: Path) -> None:
    (folder / ".owner").unlink()
    (folder / ".lock").unlink()


def meanwhile(monkeypatch: pytest.MonkeyPatch, setting: Config, what: Callable[[Path], Any], after: int = 3) -> None:
    original = Trainer.run_round

    def disturbed(self: Trainer) -> None:
        original(self)
        if self.runs[0].round == after:
            what(folder_of(setting))

    monkeypatch.setattr(Trainer, "run_round", disturbed)


@pytest.mark.parametrize("what", [remove_all, make_anew, remove_owner])
def test_a_run_whose_folder_is_taken_away_fails_and_writes_no_more(
    what: Any, whole: Any, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    command, expected, _ = whole
    setting = settings(*command)
    seen: list[list[Path]] = []

    def disturb(folder: Path) -> None:
        what(folder)
        seen.append(sorted(folder.rglob("*")))
        seen[0].append(folder)

    meanwhile(monkeypatch, setting, disturb)
    outcome, _ = run(setting)
    monkeypatch.undo()
    assert outcome is not None and outcome.status == "failed" and ".owner was removed" in outcome.reason
    assert sorted(outcome.folder.rglob("*")) == seen[0][:-1]
    again, _ = run(setting)
    assert again is not None and again.status == "finished" and result(again.folder) == expected


@pytest.mark.parametrize(
    "change",
    [Path.unlink, lambda path: path.write_bytes(path.read_bytes() + b"{}\n"), lambda path: path.write_bytes(flipped(path.read_bytes()))],
)
@pytest.mark.parametrize("after", [3, 5])
def test_metrics_that_are_changed_while_the_run_is_written_are_written_again(
    change: Any, after: int, whole: Any, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    command, expected, _ = whole
    setting = settings(*command)
    meanwhile(monkeypatch, setting, lambda folder: change(folder / METRICS), after)
    outcome, notes = run(setting)
    assert outcome is not None and outcome.status == "finished" and result(outcome.folder) == expected
    assert "was changed or removed while the run was being written" in str(notes)


def test_checkpoints_that_are_removed_while_the_run_is_written_are_made_again(
    whole: Any, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    command, expected, _ = whole
    setting = settings(*command)
    meanwhile(monkeypatch, setting, lambda folder: shutil.rmtree(folder / "checkpoints"))
    outcome, _ = run(setting)
    assert outcome is not None and outcome.status == "finished" and result(outcome.folder) == expected


def test_training_from_zero_is_never_silent(whole: Any, settings: Any) -> None:
    """Where rows of metrics tell that there was something to go on from."""
    command, expected, _ = whole
    setting = settings(*command)
    run(setting, killed_after=4)
    shutil.rmtree(folder_of(setting) / "checkpoints")
    outcome, notes = run(setting)
    assert "there are rows of metrics but no checkpoint to continue from; training starts again" in str(notes)
    assert outcome is not None and result(outcome.folder) == expected


def test_a_file_in_place_of_the_checkpoints_is_named_until_it_is_moved(whole: Any, settings: Any) -> None:
    command, expected, _ = whole
    setting = settings(*command)
    run(setting, killed_after=4)
    checkpoints = folder_of(setting) / "checkpoints"
    shutil.rmtree(checkpoints)
    checkpoints.write_text("")
    for _ in range(2):
        outcome, _ = run(setting)
        assert outcome is not None and outcome.status == "failed"
        assert outcome.reason.startswith(f"no folder where one should be: {checkpoints}; move it away")
    checkpoints.unlink()
    outcome, _ = run(setting)
    assert outcome is not None and result(outcome.folder) == expected


# Conditions


def test_conditions_come_from_the_checkpoint_whatever_becomes_of_the_environment(settings: Any) -> None:
    auto = [word for word in LOCALSGD if not word.startswith("engine=")]
    begun = settings(*auto, "engine=im2col")
    run(begun, killed_after=2)
    folder = folder_of(begun)
    path = folder / "environment.json"
    first = json.loads(path.read_text())
    for damage in (path.unlink, lambda: path.write_text('{"engine": "loop", "threads": 3}'), lambda: path.write_text("[]")):
        damage()
        _, notes = run(settings(*auto), killed_after=3)
        assert not notes.lines
        assert json.loads(path.read_text())["engine"] == "im2col"
    assert json.loads(path.read_text()) == first
    conditions = read_verified(max((folder / "checkpoints").glob("round-*.pt")))["conditions"]
    assert conditions.keys() == {"engine", "threads", "rows_at_once", "samples_at_once", "device", "torch"}


def test_members_begun_under_different_conditions_are_trained_in_groups(settings: Any, tmp_path: Path) -> None:
    auto = [word for word in LOCALSGD if not word.startswith("engine=")]
    expected = {}
    for seed, engine in enumerate(["loop", "im2col", "loop"]):
        run(settings(*auto, f"seed={seed}", f"engine={engine}"))
        (folder,) = Path(settings(*auto).outputs).glob("*/*/*")
        expected[folder.name] = result(folder)
        shutil.rmtree(folder)
    for seed, engine in enumerate(["loop", "im2col", "loop"]):
        run(settings(*auto, f"seed={seed}", f"engine={engine}"), killed_after=1 + seed)
    notes = Notes()
    outcomes = execute_together([settings(*auto, f"seed={seed}") for seed in range(4)], notes)  # one of them is begun here
    assert [outcome.status for outcome in outcomes] == ["finished"] * 4
    assert not notes.lines
    assert sorted(notes.rounds) == [0, 1, 2, 3]
    for outcome in outcomes[:3]:
        assert result(outcome.folder)[0] == expected[outcome.folder.name][0]


def test_a_run_begun_on_a_gpu_goes_on_without_one_alone_and_in_a_pack(settings: Any) -> None:
    auto = [word for word in LOCALSGD if not word.startswith("engine=")]
    for seed in range(2):
        run(settings(*auto, f"seed={seed}"), killed_after=2)
    for path in Path(settings(*auto).outputs).rglob("round-*.pt"):
        content = read_verified(path)
        content["conditions"].update(engine="graph", device="a GPU")
        write_verified(path, content)
    notes = Notes()
    outcomes = execute_together([settings(*auto, f"seed={seed}") for seed in range(3)], notes)
    assert [outcome.status for outcome in outcomes] == ["finished"] * 3
    assert "begun with engine=graph and goes on with " in str(notes) and "begun with device=a GPU" in str(notes)
