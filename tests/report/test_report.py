"""The report reads only what runs wrote."""

from __future__ import annotations

import csv
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fl_hydra.report.__main__ import main
from fl_hydra.report.commands import portable
from fl_hydra.report.cost import KEYS, read_table
from fl_hydra.report.measures import measures
from fl_hydra.report.results import Statistic
from fl_hydra.report.runs import Run, by_setting
from fl_hydra.report.wording import figure
from fl_hydra.runs.identity import describe
from tests.conftest import Program
from tests.support.make import PROJECT, experiment
from tests.support.reports import LOCAL, reported, table, write_run


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
    "algorithm=fedavg server=adam": "FedAvg K=100 C=0.1 J=4, iid, server=adam",
    "algorithm=fedadam": "FedAdam K=100 C=0.1 J=4, iid",
    "algorithm=fedsgd": "FedSGD K=100 C=0.1 J=1, iid",
    "algorithm=scaffold server=fedyogi swa.start=0.5": "SCAFFOLD K=100 C=0.1 J=4, iid, server=fedyogi, swa.start=0.5",
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
    assert line.startswith(f"error: {tmp_path / where} cannot be written (") and line.endswith("fix that, or choose outputs=")


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
