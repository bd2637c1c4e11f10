"""The report reads only what runs wrote."""

from __future__ import annotations

import csv
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fl_hydra.report.__main__ import main
from fl_hydra.report.cost import KEYS
from fl_hydra.report.figures import draw_accuracy
from fl_hydra.report.runs import Run, by_setting, mean_and_deviation, mean_in_digits, read_runs
from fl_hydra.runs.identity import describe
from tests.conftest import Program
from tests.support.make import PROJECT, experiment


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
    assert [(row["setting"], row["seeds"]) for row in rows] == [("LocalSGD K=2 J=2", "2"), ("LocalSGD K=2 J=4", "2")]
    runs = read_runs([path.parent for path in sorted(tmp_path.rglob("summary.json"))])
    group = next(group for _, group in by_setting(runs) if group[0].config["J"] == 2)
    expected = mean_and_deviation([run.rows[-1]["test/acc"] for run in group], 100)
    assert rows[0]["test acc %"] == expected
    assert " ± " in expected
    assert (tmp_path / "outputs/report/mine-cost.png").read_bytes().startswith(b"\x89PNG")
    with open(tmp_path / "outputs/report/mine-cost.csv") as file:
        costs = list(csv.DictReader(file))
    assert [row["setting"] for row in costs] == ["LocalSGD K=2 J=2", "LocalSGD K=2 J=4"]
    assert float(costs[0]["WAN s"]) > float(costs[1]["WAN s"]) > float(costs[1]["simulated s"])


def test_a_mistake_in_the_table_of_networks_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "cost.yaml"
    broken.write_text("collective: ring\n")
    monkeypatch.setattr(sys, "argv", ["report", "mine", "--cost", str(broken)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"error: {broken}: networks, devices, figure: missing; needed are {', '.join(KEYS)}\n"


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
    assert mean_in_digits([3.0, 3.0]) == "3"
    assert mean_in_digits([0.012345]) == "0.0123"
    assert mean_in_digits([0.1 + 0.2, 0.3]) == "0.300"
    assert mean_in_digits([100.4, 101.2]) == "101 ± 1"


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


def test_seeds_that_were_evaluated_after_other_samples_are_drawn_together(tmp_path: Path) -> None:
    """Where rounds differ in length, so do the numbers of rows."""
    rows = [{"round": n, "samples": 10 * n, "val/acc": 0.1 * n, "test/acc": 0.1 * n} for n in range(1, 6)]
    first, second = of("algorithm=localsgd", "local_steps=loss"), of("algorithm=localsgd", "local_steps=loss", "seed=1")
    runs = [replace(first, rows=rows), replace(second, rows=[rows[0], rows[4]])]
    assert draw_accuracy(runs, tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def drawn(monkeypatch: pytest.MonkeyPatch, runs: list[Run], path: Path) -> dict[str, int]:
    """How many lines each panel of the figure has, by what its y axis says."""
    from matplotlib import pyplot

    panels: dict[str, int] = {}
    close = pyplot.close

    def look(figure: Any) -> None:
        panels.update({axis.get_ylabel(): len(axis.lines) for axis in figure.axes if axis.get_ylabel()})
        close(figure)

    monkeypatch.setattr(pyplot, "close", look)
    draw_accuracy(runs, path)
    return panels


def test_chosen_steps_and_the_noise_scale_are_drawn_where_there_are_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"round": n, "samples": 10 * n, "val/acc": 0.1 * n, "test/acc": 0.1 * n} for n in range(1, 6)]
    plain = replace(of("algorithm=localsgd"), rows=rows)
    rule = replace(of("algorithm=localsgd", "local_steps=linear"), rows=[{**row, "J": row["round"]} for row in rows])
    scales = [None, 64.0, 100.0, 130.0, 90.0]  # there is none at first, where no signal was seen
    noise = [{**row, "J": 4, "noise_scale": scale} for row, scale in zip(rows, scales, strict=True)]
    measured = replace(of("algorithm=localsgd", "local_steps=noise"), rows=noise)
    accuracy = {"validation accuracy, %": 1, "test accuracy, %": 1}
    steps, scale = "local steps J", "gradient noise scale, samples"
    assert drawn(monkeypatch, [plain], tmp_path / "1.png") == accuracy
    assert drawn(monkeypatch, [plain, rule], tmp_path / "2.png") == {**dict.fromkeys(accuracy, 2), steps: 1}
    assert drawn(monkeypatch, [plain, rule, measured], tmp_path / "3.png") == {**dict.fromkeys(accuracy, 3), steps: 2, scale: 1}
