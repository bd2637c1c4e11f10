"""What lies in a run's folder is not trusted by its name: copies, and damaged metrics and summaries."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from typing import Any

import pytest

from fl_hydra.files import CorruptFile
from fl_hydra.runs.execution import execute
from fl_hydra.runs.folder import BESIDE, METRICS, rows_of
from fl_hydra.runs.summary import SEAL, read_ended
from tests.support.folders import FEDAVG, LOCALSGD, TINY, Notes, copied, flipped, folder_of, result, run


def test_a_folder_copied_to_another_runs_name_is_refused(whole: Any, settings: Any) -> None:
    command, _, source = whole
    longer = settings(*command, "rounds=12")
    execute(longer, Notes())
    target = folder_of(longer)
    shutil.rmtree(target)
    for part in ("all of it", "checkpoints"):
        shutil.copytree(source, target)
        if part == "checkpoints":
            (target / "summary.json").unlink()
        before = {path: path.read_bytes() for path in target.rglob("*") if path.is_file() and path.name != ".lock"}
        outcome, _ = run(longer)
        assert outcome is not None and outcome.status == "failed"
        held = json.loads((source / "summary.json").read_text())
        assert f"holds another run, {held['run']} (budget={held['config']['budget']} where this run has" in outcome.reason
        assert "a run of its own" in outcome.reason and "move this folder away" in outcome.reason
        assert {path: path.read_bytes() for path in target.rglob("*") if path.is_file() and path.name != ".lock"} == before
        shutil.rmtree(target)


def test_client_state_of_another_training_is_not_taken_for_its_own(settings: Any) -> None:
    """Of the same run even, at another learning rate of life: a sound file with the right name and the wrong content."""
    setting = settings(*LOCALSGD)
    run(setting)
    folder = folder_of(setting)
    expected = result(folder)
    (folder / "summary.json").unlink()
    run(settings(*LOCALSGD, "seed=5"))
    (other,) = (path for path in folder.parent.iterdir() if path != folder)
    shutil.copy(next(other.glob("checkpoints/clients/5-*.rows")), next(folder.glob("checkpoints/clients/5-*.rows")))
    _, notes = run(setting)
    assert "not the file that belongs here" in str(notes) and "falling back to the one before" in str(notes)
    assert result(folder) == expected


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "flipped": flipped,
    "shorter": lambda content: content[:-7],
    "a row less": lambda content: b"".join(content.splitlines(keepends=True)[:-1]),
    "a row twice": lambda content: content + content.splitlines(keepends=True)[-1],
    "empty": lambda content: b"",
    "zeros": lambda content: bytes(len(content)),
    "another figure": lambda content: content.replace(b"1", b"2", 3),
}


@pytest.mark.parametrize(
    ("state", "damage"),
    [(state, damage) for state in ("finished", "unfinished") for damage in DAMAGES] + [("without checkpoints", "flipped")],
)
def test_damaged_metrics_are_noticed_and_made_again(damage: str, state: str, whole: Any, settings: Any) -> None:
    command, expected, source = whole
    setting = settings(*command)
    if state == "unfinished":
        run(setting, killed_after=4)
        folder = folder_of(setting)
    else:
        folder = copied(source, setting)
        if state == "without checkpoints":
            shutil.rmtree(folder / "checkpoints")
    metrics = folder / METRICS
    metrics.write_bytes(DAMAGES[damage](metrics.read_bytes()))
    _, notes = run(setting)
    assert result(folder) == expected
    if (state, damage) != ("unfinished", "a row twice"):  # what comes after the checkpoint's rows is cut off in any case
        assert METRICS in str(notes)
    assert notes.rounds == {"finished": [], "without checkpoints": [0], "unfinished": [4]}[state]
    assert not run(setting)[1].lines, "once is enough"


def replaced(key: str, value: Any) -> Callable[[bytes], bytes]:
    return lambda content: json.dumps({**json.loads(content), key: value}).encode()


SUMMARIES: dict[str, Callable[[bytes], bytes]] = {
    **{name: DAMAGES[name] for name in ("flipped", "shorter", "empty")},
    "status": replaced("status", "diverged"),
    "weights": replaced("weights_sha256", "0" * 64),
    "metrics": replaced("metrics", {"round": 1, "test/acc": 0.99}),
    "seal": replaced(SEAL, "0" * 64),
    "without its seal": lambda content: json.dumps({k: v for k, v in json.loads(content).items() if k != SEAL}).encode(),
    "a list": lambda content: b"[]",
    "nested": lambda content: b"[" * 100000,
}


@pytest.mark.parametrize("damage", SUMMARIES)
def test_a_damaged_summary_is_noticed_and_made_again(damage: str, whole: Any, settings: Any) -> None:
    command, expected, source = whole
    setting = settings(*command)
    folder = copied(source, setting)
    summary = folder / "summary.json"
    summary.write_bytes(SUMMARIES[damage]((source / "summary.json").read_bytes()))
    with pytest.raises(CorruptFile, match=r"summary\.json"):
        read_ended(folder)
    outcome, notes = run(setting)
    assert outcome is not None and outcome.status == "finished"
    assert "this run had ended, but summary.json" in str(notes) and not notes.rounds
    assert result(folder) == expected
    assert {**json.loads(summary.read_text()), "beside_sha256": 0, SEAL: 0} == {
        **json.loads((source / "summary.json").read_text()),
        "beside_sha256": 0,
        SEAL: 0,
    }


def test_a_summary_of_an_earlier_version_is_found(whole: Any, settings: Any) -> None:
    command, _, source = whole
    setting = settings(*command)
    summary = copied(source, setting) / "summary.json"
    old = {key: value for key, value in json.loads(summary.read_text()).items() if key not in (SEAL, "format")}
    summary.write_text(json.dumps(old))
    outcome, notes = run(setting)
    assert outcome is not None and (outcome.status, outcome.trained) == ("finished", False) and not notes.lines
    summary.write_text(json.dumps({**old, "status": "diverged"}))
    assert "does not say what metrics.jsonl says" in str(run(setting)[1])


def test_a_diverged_run_whose_summary_is_lost_has_diverged_at_the_same_round(settings: Any) -> None:
    setting = settings("algorithm=fedavg", "K=10", "C=0.5", "J=20", "rounds=40", "optimizer.momentum=0.9", "optimizer.lr=1e6", *TINY)
    first, _ = run(setting)
    assert first is not None and first.status == "diverged"
    rows = (first.folder / METRICS).read_bytes()
    (first.folder / "summary.json").unlink()
    again, _ = run(setting)
    assert again is not None and (again.status, again.reason) == (first.status, first.reason)
    assert (first.folder / METRICS).read_bytes() == rows


@pytest.mark.parametrize("name", BESIDE)
def test_a_folder_in_place_of_a_file_for_the_reader_is_named_and_changes_nothing(name: str, whole: Any, settings: Any) -> None:
    command, expected, original = whole
    setting = settings(*command)
    folder = copied(original, setting)
    (folder / name).unlink()
    (folder / name).mkdir()
    for _ in range(2):
        outcome, notes = run(setting)
        assert outcome is not None and not outcome.trained and result(folder) == expected
        (line,) = notes.lines
        assert f"move {name}, which is a folder, away" in line


@pytest.mark.parametrize("name", BESIDE)
def test_files_for_the_reader_of_a_finished_run_are_rebuilt(name: str, whole: Any, settings: Any) -> None:
    command, expected, source = whole
    setting = settings(*command)
    folder = copied(source, setting)
    for damage in ("flipped", "missing"):
        path = folder / name
        path.write_bytes(flipped(path.read_bytes())) if damage == "flipped" else path.unlink()
        outcome, notes = run(setting)
        assert outcome is not None and outcome.status == "finished"
        assert f"{name} is damaged or missing" in str(notes) and not notes.rounds
        assert name == "config.yaml" or path.read_bytes() == (source / name).read_bytes()
        assert not run(setting)[1].lines
    assert result(folder) == expected
    shutil.rmtree(folder / "checkpoints")
    (folder / name).unlink()
    outcome, notes = run(setting)
    assert outcome is not None and (outcome.status, outcome.trained) == ("finished", False) and "changes no result" in str(notes)


def test_a_torn_row_of_timings_is_mended_on_resume(settings: Any) -> None:
    setting = settings(*FEDAVG)
    run(setting, killed_after=4)
    path = folder_of(setting) / "timings.jsonl"
    rounds = [row["round"] for row in rows_of(path.read_bytes())]
    path.write_bytes(path.read_bytes() + b'{"round": 5, "sam')
    run(setting)
    metrics = rows_of((path.parent / METRICS).read_bytes())
    found = [row["round"] for row in rows_of(path.read_bytes())]
    assert found[: len(rounds)] == rounds and found == [row["round"] for row in metrics]
