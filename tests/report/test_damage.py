"""Runs whose files are damaged, missing or odd are named in the report, and in no mean."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fl_hydra.report.__main__ import main
from fl_hydra.runs.folder import RunFolder
from fl_hydra.runs.identity import hash_of, run_hash
from fl_hydra.runs.reading import read_run
from tests.support.make import experiment
from tests.support.reports import LOCAL, SLOW, reported, table, write_run


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def put_directory(folder: Path) -> None:
    (folder / "summary.json").unlink()
    (folder / "summary.json").mkdir()


def put_pipe(folder: Path) -> None:
    (folder / "summary.json").unlink()
    os.mkfifo(folder / "summary.json")


SPOILED: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "no summary": (lambda folder: (folder / "summary.json").unlink(), "unfinished (it has not ended", "1 unfinished"),
    "metrics, one bit": (lambda folder: flip(folder / "metrics.jsonl"), "damaged (metrics.jsonl is not what", "1 damaged"),
    "metrics gone": (lambda folder: (folder / "metrics.jsonl").unlink(), "damaged (metrics.jsonl is missing)", "1 damaged"),
    "summary, one bit": (lambda folder: flip(folder / "summary.json"), "damaged (", "1 damaged"),
    "summary empty": (lambda folder: (folder / "summary.json").write_text(""), "damaged (summary.json is damaged)", "1 damaged"),
    "summary a folder": (put_directory, "damaged (it cannot be read", "1 damaged"),
    "summary a pipe": (put_pipe, "damaged (it cannot be read", "1 damaged"),
}


@pytest.mark.parametrize("how", SPOILED)
def test_a_run_without_a_sound_result_is_named_and_counted(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, why, counted = SPOILED[how]
    folders = [write_run(tmp_path, *LOCAL, f"seed={seed}", acc=0.1 * seed) for seed in (1, 2, 3)]
    spoil(folders[2])
    assert reported(tmp_path, monkeypatch, "mine") == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"in no mean of mine: {folders[2]}: {why}")
    for name in ("mine", "mine-cost"):
        (row,) = table(tmp_path, name).values()
        figure, mean = ("test/acc", 15.0) if name == "mine" else ("round", 2.0)
        assert float(row[f"{figure} mean"]) == pytest.approx(mean)
        assert row[f"{figure} n"] == "2"
        assert row["status"] == f"2 of 3 finished, {counted}"
    assert table(tmp_path, "mine")["LocalSGD K=2 J=8"]["test/acc n"] == "2"
    note = (tmp_path / "report/mine.md").read_text()
    assert "means ± sample standard deviations over the n seeds that finished" in note
    assert folders[2].name in note


def test_a_run_of_which_only_checkpoints_are_left_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_run(tmp_path, *LOCAL)
    (folder / "checkpoints").mkdir()
    for path in folder.iterdir():
        if path.is_file():
            path.unlink()
    monkeypatch.setattr(sys, "argv", ["report", "--outputs", str(tmp_path), "--list"])
    main()
    assert "unfinished" in capsys.readouterr().out


def test_a_section_whose_list_is_no_file_is_a_mistake_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path, *LOCAL)
    (tmp_path / "sections" / "mine.txt").unlink()
    os.mkfifo(tmp_path / "sections" / "mine.txt")
    assert reported(tmp_path, monkeypatch, "mine") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: section=mine: ") and "cannot be read" in line


def test_runs_of_which_nothing_can_be_told_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder that is gone, one whose files are another run's, and one with neither summary nor configuration."""
    kept, gone, other, bare = (write_run(tmp_path, *LOCAL, f"seed={seed}") for seed in range(4))
    shutil.rmtree(gone)
    for name in ("config.yaml", "metrics.jsonl", "summary.json"):
        shutil.copy(kept / name, other / name)
    (bare / "summary.json").unlink()
    (bare / "config.yaml").write_text("not: [a, configuration")
    assert reported(tmp_path, monkeypatch, "mine") == 0
    first, second, third = capsys.readouterr().err.splitlines()
    assert first == f"in no mean of mine: {gone}: missing (it has not begun, or its folder was removed)"
    run = run_hash(experiment(*LOCAL, "seed=0"))
    assert second == f"in no mean of mine: {other}: damaged (it holds run {run}, which the folder is not named after)"
    assert third.startswith(f"in no mean of mine: {bare}: unfinished")
    assert table(tmp_path, "mine")["LocalSGD K=2 J=8"]["test/acc n"] == "1"


def test_a_setting_without_a_result_keeps_its_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(3):
        write_run(tmp_path, *SLOW, f"seed={seed}", status="unfinished")
    write_run(tmp_path, *LOCAL)
    assert reported(tmp_path, monkeypatch, "mine") == 0
    for name in ("mine", "mine-cost"):
        rows = table(tmp_path, name)
        assert list(rows) == ["SlowMo K=2 J=8", "LocalSGD K=2 J=8"]
        assert rows["SlowMo K=2 J=8"]["status"] == "0 of 3 ended, 3 unfinished"
        assert rows["SlowMo K=2 J=8"]["round mean"] == ""
        assert rows["LocalSGD K=2 J=8"]["status"] == "finished"


def test_diverged_seeds_are_in_no_mean_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their accuracies are those of a guess, and would be taken for the method's."""
    for seed, acc in ((0, 0.8), (1, 0.9)):
        write_run(tmp_path, *LOCAL, f"seed={seed}", acc=acc)
    diverged = write_run(tmp_path, *LOCAL, "seed=2", acc=0.1, status="diverged")
    write_run(tmp_path, *SLOW, acc=0.1, status="diverged")
    assert reported(tmp_path, monkeypatch, "mine") == 0
    for name in ("mine", "mine-cost"):
        rows = table(tmp_path, name)
        assert rows["LocalSGD K=2 J=8"]["round n"] == "2"
        assert rows["LocalSGD K=2 J=8"]["status"] == "2 of 3 finished, 1 diverged"
        assert rows["SlowMo K=2 J=8"]["round mean"] == ""
        assert rows["SlowMo K=2 J=8"]["status"] == "0 of 1 finished, 1 diverged"
    assert f"in no mean of mine: {diverged}: diverged (test/loss not finite)" in capsys.readouterr().err


def test_a_section_without_a_result_does_not_keep_others_from_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path, *LOCAL, status="unfinished")
    (tmp_path / "sections" / "mine.txt").rename(tmp_path / "sections" / "early.txt")
    write_run(tmp_path, *SLOW)
    assert reported(tmp_path, monkeypatch) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "error: section=early: none of its 1 runs has ended; train them first"
    assert list(table(tmp_path, "mine")) == ["SlowMo K=2 J=8"]


def test_every_run_is_listed_with_its_setting_even_if_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path, *LOCAL, status="unfinished")
    damaged = write_run(tmp_path, *SLOW)
    flip(damaged / "metrics.jsonl")
    (damaged / "config.yaml").unlink()
    monkeypatch.setattr(sys, "argv", ["report", "--outputs", str(tmp_path), "--list"])
    main()
    listed = capsys.readouterr().out
    assert "LocalSGD K=2 J=8" in listed
    assert "damaged (metrics.jsonl" in listed.replace("\n", " ")


def edited(path: Path, change: Callable[[Any], object]) -> None:
    """Change what a JSON file holds."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def resealed(folder: Path, change: Callable[[list[dict[str, Any]]], object]) -> None:
    """Change the rows of a run, whose summary then says the same."""
    path = folder / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    change(rows)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    edited(folder / "summary.json", lambda summary: summary.update(metrics=rows[-1], metrics_sha256=digest))


ODD: dict[str, tuple[Callable[[Path], object], str]] = {
    "metrics truncated": (
        lambda folder: os.truncate(folder / "metrics.jsonl", 300),
        "metrics.jsonl is not what summary.json was written for",
    ),
    "metrics binary": (lambda folder: (folder / "metrics.jsonl").write_bytes(bytes(range(256))), "metrics.jsonl is not what"),
    "metrics empty": (lambda folder: (folder / "metrics.jsonl").write_text(""), "metrics.jsonl is not what"),
    "no samples": (
        lambda folder: resealed(folder, lambda rows: [row.pop("samples") for row in rows]),
        "metrics.jsonl has a row without its samples",
    ),
    "NaN": (
        lambda folder: resealed(folder, lambda rows: rows[0].update({"test/acc": float("nan")})),
        "metrics.jsonl has a test/acc that is no number",
    ),
    "text": (
        lambda folder: resealed(folder, lambda rows: rows[0].update({"val/acc": "0.5"})),
        "metrics.jsonl has a val/acc that is no number",
    ),
    "newer": (
        lambda folder: edited(folder / "summary.json", lambda summary: summary.update(format=99)),
        "a newer version of this program wrote it; update this one",
    ),
}


@pytest.mark.parametrize("how", ODD)
def test_what_no_version_writes_is_damaged(how: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path, *LOCAL)
    assert read_run(folder).finished
    spoil, why = ODD[how]
    spoil(folder)
    run = read_run(folder)
    assert run.status == "damaged" and run.why.startswith(why) and not run.rows


def test_a_run_of_a_version_with_other_keys_is_left_out_with_a_reason(tmp_path: Path) -> None:
    folder = write_run(tmp_path, *LOCAL)
    summary = json.loads((folder / "summary.json").read_text())
    del summary["config"]["participation"]
    summary["run"] = hash_of(summary["config"])
    (folder / "summary.json").write_text(json.dumps(summary))
    moved = folder.rename(folder.with_name(f"old-{summary['run']}"))
    run = read_run(moved)
    assert (run.status, run.config) == ("damaged", {}) and "another version" in run.why


def test_a_run_that_is_being_trained_is_said_to_be(tmp_path: Path) -> None:
    folder = write_run(tmp_path, *LOCAL, status="unfinished")
    with RunFolder(folder).owned(print):
        assert read_run(folder).why == "it is being trained now"
    assert read_run(folder).why == "it has not ended; the same command continues it"


GONE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no name": (lambda outputs: (outputs / "sections/mine.txt").write_text(""), "its list names no run; train some with it"),
    "no folder": (lambda outputs: shutil.rmtree(outputs / "digits"), "none of its 1 runs has begun, or their folders were removed"),
}


@pytest.mark.parametrize("how", GONE)
def test_a_section_of_which_nothing_is_left_is_a_mistake(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path, *LOCAL)
    spoil, why = GONE[how]
    spoil(tmp_path)
    assert reported(tmp_path, monkeypatch, "mine") == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: section=mine: {why}")
