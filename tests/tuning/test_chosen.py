"""What a search or a grid has chosen, and who takes it up."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from fl_hydra.errors import UserError
from tests.conftest import Program
from tests.support.searches import LOCAL, TINY, summaries


def test_what_was_chosen_is_taken_where_the_command_line_gives_nothing(searched: Path, program: Program, tmp_path: Path) -> None:
    from fl_hydra.tuning.__main__ import of_studies
    from fl_hydra.tuning.chosen import write_chosen

    shutil.copytree(searched / "outputs", tmp_path / "outputs")
    outputs = tmp_path / "outputs"
    chosen = {each.where["J"]: each for each in of_studies("localsgd", outputs)}
    write_chosen("localsgd", outputs, list(chosen.values()))
    program("-m", *LOCAL, "J=4,8", "seed=1", "tuned=localsgd", cwd=tmp_path)
    program(*LOCAL, "J=4", "seed=2", "tuned=localsgd", "optimizer.lr=0.5", cwd=tmp_path)
    new = [json.loads(path.read_text())["config"] for path in summaries(tmp_path) if json.loads(path.read_text())["config"]["seed"] != 100]
    assert len(new) == 3
    for config in new:
        values = chosen[config["J"]].values
        assert config["optimizer"]["weight_decay"] == values["optimizer.weight_decay"]
        assert config["optimizer"]["lr"] == (0.5 if config["seed"] == 2 else values["optimizer.lr"])
    refused = program(*LOCAL, "J=16", "tuned=localsgd", cwd=tmp_path)
    assert refused.status == 2 and "no choice is for this run" in refused.output
    missing = program(*LOCAL, "J=4", "tuned=other", cwd=tmp_path)
    assert missing.status == 2 and "there are localsgd" in missing.output


def test_an_option_of_a_group_is_chosen_too(program: Program, tmp_path: Path) -> None:
    from fl_hydra.tuning.chosen import Chosen, write_chosen

    values = {"optimizer": "adamw", "optimizer.lr": 0.005, "scheduler": "cosine"}
    write_chosen("mine", tmp_path / "outputs", [Chosen({}, values, "val/acc", 0.5, "study", 4, [100], "2026-01-01")])
    assert program(*LOCAL, "J=4", "tuned=mine", cwd=tmp_path).status == 0
    assert program("-m", *LOCAL, "J=4", "tuned=mine", "seed=1", "optimizer=sgdm", cwd=tmp_path).status == 0
    found = {config["seed"]: config for path in summaries(tmp_path) if (config := json.loads(path.read_text())["config"])}
    assert [(config["optimizer"]["name"], config["optimizer"]["lr"]) for _, config in sorted(found.items())] == [
        ("adamw", 0.005),
        ("sgdm", 0.01),
    ]
    assert all(config["scheduler"]["name"] == "cosine" for config in found.values())


def test_the_best_of_a_grid_is_chosen_by_means_over_its_seeds(program: Program, tmp_path: Path) -> None:
    from fl_hydra.tuning.__main__ import of_runs

    program("-m", *LOCAL, "J=4,8", "optimizer.lr=0.01,0.2", "seed=1,2", "section=grid", "hydra/launcher=packed", cwd=tmp_path)
    chosen = {each.where["J"]: each for each in of_runs("grid", tmp_path / "outputs", ["optimizer.lr"], ["seed"], "val/acc")}
    runs = [json.loads(path.read_text()) for path in summaries(tmp_path)]
    for J, each in chosen.items():
        means = {
            lr: sum(run["metrics"]["val/acc"] for run in runs if (run["config"]["J"], run["config"]["optimizer"]["lr"]) == (J, lr)) / 2
            for lr in (0.01, 0.2)
        }
        assert each.value == pytest.approx(max(means.values())) and each.values == {"optimizer.lr": max(means, key=lambda lr: means[lr])}
        assert each.seeds == [1, 2] and each.trials == 2
    for by, line in (
        (["optimizer.speed"], "no such key"),
        (["optimizer.beta1"], "not every run of section=grid has it"),
        (["seed"], "not chosen"),
    ):
        with pytest.raises(UserError, match=line):
            of_runs("grid", tmp_path / "outputs", by, ["seed"], "val/acc")
    program("-m", "algorithm=fedavg", "K=4,8", "C=0.5", "rounds=1", *TINY, "optimizer.lr=0.01,0.2", "section=clients", cwd=tmp_path)
    choices = of_runs("clients", tmp_path / "outputs", ["optimizer.lr"], ["seed"], "val/acc")
    assert [each.where for each in choices] == [{"K": 4}, {"K": 8}]
    from fl_hydra.tuning.chosen import write_chosen

    write_chosen("clients", tmp_path / "outputs", choices)
    taken = program("algorithm=fedavg", "K=8", "C=0.5", "rounds=1", *TINY, "tuned=clients", cwd=tmp_path)
    assert taken.status == 0 and "finished before" in taken.output


def test_what_is_typed_decides_between_methods_of_one_class(tmp_path: Path) -> None:
    """algorithm=fedadam is FedAvg with another server, so that a choice for algorithm=fedavg would fit it too."""
    from hydra import compose, initialize_config_dir

    from fl_hydra.paths import CONF
    from fl_hydra.schema import register_schema
    from fl_hydra.tuning.chosen import Chosen, with_chosen, write_chosen

    register_schema()
    rates = {"fedavg": 0.3, "fedadam": 0.02}
    made = [
        Chosen({"algorithm": name}, {"optimizer.lr": lr}, "val/acc", 0.5, "study", 4, [100], "2026-01-01") for name, lr in rates.items()
    ]
    write_chosen("rates", tmp_path, made)
    for name, lr in rates.items():
        typed = [f"algorithm={name}", "tuned=rates"]
        with initialize_config_dir(str(CONF)):
            found = with_chosen(lambda more, typed=typed: compose("config", [*typed, f"outputs='{tmp_path}'", *more]), typed)  # type: ignore[misc]
        assert found.optimizer.lr == lr
