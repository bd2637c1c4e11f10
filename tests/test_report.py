"""The report reads only what runs wrote."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from fl_hydra.report.__main__ import main
from fl_hydra.report.commands import portable
from fl_hydra.report.cost import KEYS, read_table
from fl_hydra.report.measures import measures
from fl_hydra.report.results import Statistic
from fl_hydra.report.runs import Run, by_setting
from fl_hydra.report.wording import figure
from fl_hydra.runs.folder import RunFolder
from fl_hydra.runs.identity import describe, hash_of, run_folder, run_hash
from fl_hydra.runs.reading import read_run
from tests.conftest import Program
from tests.support.make import PROJECT, experiment


def report(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fl_hydra.report", *arguments, "outputs=outputs"]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env={"PYTHONPATH": str(PROJECT), "PATH": ""}, check=False)


def test_section_becomes_a_figure_and_a_table_over_seeds(program: Program, tmp_path: Path) -> None:
    assert program("-m", "section=mine", "algorithm=localsgd", "K=2", "J=2,4", "seed=0,1", "epochs=2", cwd=tmp_path).status == 0
    assert program("-m", "section=mine", "algorithm=localsgd", "K=2", "J=2,4", "seed=0,1", "epochs=2", cwd=tmp_path).status == 0
    done = report("mine", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for name in ("curves",):
        assert (tmp_path / f"outputs/report/mine-{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (tmp_path / f"outputs/report/mine-{name}.pdf").read_bytes().startswith(b"%PDF")
    with open(tmp_path / "outputs/report/mine.csv") as file:
        rows = list(csv.DictReader(file))
    assert [(row["setting"], row["test/acc n"]) for row in rows] == [("LocalSGD K=2 J=2", "2"), ("LocalSGD K=2 J=4", "2")]
    for row, J in zip(rows, (2, 4), strict=True):  # worked out by other code, from the files alone
        finals = []
        for path in sorted((tmp_path / "outputs").rglob("metrics.jsonl")):
            if f"-J{J}-" in path.parent.name:
                finals.append(100 * json.loads(path.read_text().splitlines()[-1])["test/acc"])
        assert float(row["test/acc mean"]) == pytest.approx(statistics.mean(finals))
        assert float(row["test/acc deviation"]) == pytest.approx(statistics.stdev(finals))
    with open(tmp_path / "outputs/report/mine-cost.csv") as file:
        costs = list(csv.DictReader(file))
    assert [row["setting"] for row in costs] == ["LocalSGD K=2 J=2", "LocalSGD K=2 J=4"]
    assert float(costs[0]["WAN mean"]) > float(costs[1]["WAN mean"]) > float(costs[1]["seconds mean"])


def test_a_mistake_in_the_table_of_networks_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "cost.yaml"
    broken.write_text("collective: ring\n")
    monkeypatch.setattr(sys, "argv", ["report", "mine", "--cost", str(broken)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"error: {broken}: networks, devices: missing; needed are {', '.join(KEYS)}\n"


def test_every_run_is_listed(program: Program, tmp_path: Path) -> None:
    program("epochs=1", cwd=tmp_path)
    program("epochs=30", "checkpoint.seconds=0", cwd=tmp_path, kill={"kind": "round", "n": 5})
    done = report("--list", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "finished" in done.stdout
    assert "unfinished" in done.stdout


def test_unknown_section_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "outputs").mkdir()
    done = report("nothing", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no run was asked for with section=nothing")
    assert done.stderr.count("\n") == 1


def test_figures_have_the_digits_of_their_measure_and_costs_three() -> None:
    known = measures(read_table())
    assert figure(Statistic((50.0,)), known["test/acc"]) == ("50.00", None)
    assert figure(Statistic((40.0, 60.0)), known["test/acc"]) == ("50.00", "14.14")
    assert figure(Statistic((3.0, 3.0)), known["bytes"]) == ("3", None)
    assert figure(Statistic((0.012345,)), known["bytes"]) == ("0.0123", None)
    assert figure(Statistic((0.1 + 0.2, 0.3)), known["bytes"]) == ("0.300", None)
    assert figure(Statistic((100.4, 101.2)), known["bytes"]) == ("101", "1")


def of(*overrides: str) -> Run:
    return Run(Path("nowhere"), describe(experiment(*overrides)), [{}], "finished")


LABELS = {
    "algorithm=centralized": "Centralized, batch 64",
    "algorithm=centralized optimizer=lars batch_size=1024 data_parallel=8": "Centralized, batch 1024, data_parallel=8, lars",
    "algorithm=localsgd K=8 J=16": "LocalSGD K=8 J=16",
    "algorithm=localsgd local_steps=linear": "LocalSGD K=4 J=8 (linear)",
    "algorithm=localsgd optimizer=adam sharding=classes N_c=5": "LocalSGD K=4 J=8, N_c=5, adam",
    "algorithm=post_local": "Post-local SGD K=4 J=8",
    "algorithm=slowmo": "SlowMo K=4 J=8",
    "algorithm=diloco": "DiLoCo K=4 J=64",
    "algorithm=diloco optimizer=sgd server=adam": "DiLoCo K=4 J=64, sgd, server=adam",
    "algorithm=lookahead": "Lookahead J=5, batch 64",
    "algorithm=lookahead server.lr=0.3": "Lookahead J=5, batch 64, server.lr=0.3",
    "algorithm=localsgd server.lr=1.5": "LocalSGD K=4 J=8, server.lr=1.5",
    "algorithm=localsgd server=lookahead": "LocalSGD K=4 J=8, server.lr=0.5",
    "algorithm=hierarchical": "Hierarchical K=4 J=8 J_b=4 blocks=2",
    "algorithm=gossip K=8 algorithm.topology=exponential": "Gossip exponential K=8",
    "algorithm=gossip_pga": "Gossip-PGA ring K=4 J=8",
    "algorithm=gossip_aga": "Gossip-AGA ring K=4 J=8",
    "algorithm=a2cid2": "A2CiD2 ring K=4",
    "algorithm=ad_psgd": "AD-PSGD ring K=4",
    "algorithm=async_sgd": "Async SGD K=4 J=1",
    "algorithm=staleness_aware": "Staleness-aware SGD K=4 J=1",
    "algorithm=staleness_aware algorithm.power=0": "Async SGD K=4 J=1",
    "algorithm=async_sgd algorithm.power=0.5": "Async SGD K=4 J=1 power=0.5",
    "algorithm=easgd": "EASGD K=4 J=4",
    "algorithm=shat": "SHAT K=4 J=4",
    "algorithm=fedavg": "FedAvg K=100 C=0.1 J=4, iid",
    "algorithm=fedavg K=20 C=1 sharding=classes N_c=2": "FedAvg K=20 J=4, N_c=2",
    "algorithm=fedavg participation=skewed gamma=0.5": "FedAvg K=100 C=0.1 J=4, iid, gamma=0.5",
    "algorithm=fedavg participation=oort": "FedAvg K=100 C=0.1 J=4, iid, oort",
    "algorithm=fedavg participation.dropout=0.1": "FedAvg K=100 C=0.1 J=4, iid, dropout=0.1",
    "algorithm=fedavg server.momentum=0.9": "FedAvgM K=100 C=0.1 J=4, iid",
    "algorithm=fedavg server=adam": "FedAdam K=100 C=0.1 J=4, iid",
}


def test_labels_are_short_and_say_what_sets_a_method_apart() -> None:
    assert {overrides: of(*overrides.split()).label for overrides in LABELS} == LABELS


def test_every_method_has_a_label_of_its_own() -> None:
    shipped = [f"algorithm={path.stem}" for path in (PROJECT / "conf" / "algorithm").glob("*.yaml")]
    titles = {of(choice).label.split()[0].strip(",") for choice in shipped}
    assert len(titles) == len(shipped)


def test_a_method_that_the_report_does_not_know_is_labelled_with_all_that_could_matter() -> None:
    run = of("algorithm=fedavg")
    run.config["algorithm"]["name"] = "fedmine"
    assert run.label == "fedmine K=100 C=0.1 J=4, iid, sgd"


def test_what_settings_differ_in_is_added_where_labels_are_the_same() -> None:
    runs = [
        of("algorithm=async_sgd"),
        of("algorithm=async_sgd", "seed=1"),
        of("algorithm=async_sgd", "speeds=linear"),
        of("algorithm=async_sgd", "speeds=linear", "speeds.spread=0.9"),
    ]
    assert [(label, len(group)) for label, group in by_setting(runs)] == [
        ("Async SGD K=4 J=1, speeds=equal", 2),
        ("Async SGD K=4 J=1, speeds=linear, speeds.spread=0.5", 1),
        ("Async SGD K=4 J=1, speeds=linear, speeds.spread=0.9", 1),
    ]


def write_run(outputs: Path, *overrides: str, status: str = "finished", acc: float = 0.5) -> Path:
    """The files of a run that ended so, or began, as runs of the first release wrote them."""
    e = experiment(*overrides)
    folder = run_folder(e, outputs)
    folder.mkdir(parents=True)
    content = OmegaConf.create({"run": run_hash(e), "resolved": describe(e), "config": {"outputs": "${not} a reference"}})
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(content))
    counts = dict.fromkeys(("bytes_up", "bytes_down", "messages", "served", "averages", "block_averages", "exchanges", "exchanged"), 8)
    loss = None if status == "diverged" else 1.0
    figures = {"train/loss": loss, "train/acc": acc, "val/loss": loss, "val/acc": acc, "test/loss": loss, "test/acc": acc}
    rows = [{"round": n, "samples": 64 * n, "flops": 6400 * n, "seconds": 1.0 * n, **counts, **figures} for n in (1, 2)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if status != "unfinished":
        digest = hashlib.sha256((folder / "metrics.jsonl").read_bytes()).hexdigest()
        summary: dict[str, Any] = {"status": status, "reason": "test/loss not finite" if status == "diverged" else "", "run": run_hash(e)}
        summary |= {"metrics": rows[-1], "metrics_sha256": digest, "config": describe(e)}
        (folder / "summary.json").write_text(json.dumps(summary))
    names = outputs / "sections" / "mine.txt"
    names.parent.mkdir(exist_ok=True)
    with open(names, "a") as file:
        file.write(f"{folder.relative_to(outputs).as_posix()}\n")
    return folder


def reported(outputs: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit status of a report on these outputs."""
    monkeypatch.setattr(sys, "argv", ["report", "--outputs", str(outputs), *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def table(outputs: Path, name: str) -> dict[str, dict[str, str]]:
    """A written table's rows by their settings."""
    with open(outputs / "report" / f"{name}.csv") as file:
        return {row["setting"]: row for row in csv.DictReader(file)}


LOCAL, SLOW = ("algorithm=localsgd", "K=2", "rounds=2"), ("algorithm=slowmo", "K=2", "rounds=2")


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
    assert read_run(folder).why == "it has not ended; the same command goes on with it"


LINES = {"kind": "lines", "x": "J", "y": "test/acc"}
BLOCKS: dict[str, tuple[Any, str]] = {
    "no block": ([1], "report: [1]: keys and values are needed"),
    "unknown key": ({"colour": "red"}, "report.colour: no such key"),
    "unknown key of a figure": ({"figures": [{**LINES, "colour": "K"}]}, "report.figures.colour: no such key"),
    "unknown kind": ({"figures": [{"kind": "pie"}]}, "report.figures: kind=pie: choose curves"),
    "unknown measure": ({"figures": [{**LINES, "y": "accuracy"}]}, "accuracy: no such figure of a run; choose from"),
    "unknown measure compared": ({"compare": [{"axis": "J", "measure": "x"}]}, "x: no such figure of a run; choose from"),
    "no list": ({"figures": "lines"}, "report.figures: lines: a list is needed"),
    "a list for a name": ({"figures": [{**LINES, "color": ["K"]}]}, "report.figures.color: ['K']: one name is needed"),
    "a list for values": ({"figures": [{**LINES, "where": ["K"]}]}, "report.figures.where: ['K']: axes and values are needed"),
    "a word for a number": ({"figures": [{"kind": "targets", "y": "bytes", "target": "high"}]}, "report.figures.target: high: a number"),
    "a name that leads elsewhere": ({"figures": [{**LINES, "name": "../x"}]}, "report.figures: name=../x: it becomes a file's"),
}


@pytest.mark.parametrize("how", BLOCKS)
def test_a_mistake_in_a_report_block_is_one_line_that_names_its_file(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    block, said = BLOCKS[how]
    write_run(tmp_path, *LOCAL)
    path = tmp_path / "sections" / "mine.json"
    path.write_text(json.dumps({"report": block}))
    assert reported(tmp_path, monkeypatch, "mine") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: section=mine: {said}") and str(path) in line
    assert not list((tmp_path / "report").glob("mine*"))


def test_what_cannot_be_followed_is_said_and_the_rest_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A description that is damaged; axes that no run has; lines of a list that name no run."""
    write_run(tmp_path, *LOCAL)
    described, names = tmp_path / "sections" / "mine.json", tmp_path / "sections" / "mine.txt"
    described.write_text('{"report":')
    names.write_bytes(b"\xff\n../../etc\n" + names.read_bytes())
    assert reported(tmp_path, monkeypatch, "mine") == 0
    assert capsys.readouterr().err.splitlines() == [
        f"mine: {names} is damaged: 2 of its lines name no run",
        f"mine: {described} is damaged; it is drawn as a grid without a report block",
    ]
    described.write_text(json.dumps({"report": {"figures": [{**LINES, "color": "optimzer"}]}}))
    assert reported(tmp_path, monkeypatch, "mine") == 0
    assert "mine: optimzer: named in its report block, but no key of its runs; left out" in capsys.readouterr().err
    assert table(tmp_path, "mine")["LocalSGD K=2 J=8"]["test/acc n"] == "1"


@pytest.mark.parametrize("where", ["report", "report/mine.csv"])
def test_what_cannot_be_written_is_one_line(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path, *LOCAL)
    if where == "report":
        (tmp_path / where).write_text("")
    else:
        (tmp_path / where).mkdir(parents=True)
    assert reported(tmp_path, monkeypatch, "mine") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path / where} cannot be written (") and line.endswith("mend that, or choose outputs=")


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


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("python train.py -m K=2,4 outputs=/a/b seed=1", "python train.py -m K=2,4 seed=1"),
        ("python train.py -m 'outputs=/a b/c' K=2 data=~/d", "python train.py -m K=2"),
        ("python train.py -m outputs=outputs/mine dataset.text=/x/y.txt", "python train.py -m outputs=outputs/mine"),
    ],
)
def test_commands_name_no_folder_of_the_machine(command: str, told: str) -> None:
    assert portable(command) == told
