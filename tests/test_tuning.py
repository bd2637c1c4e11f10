"""Searches: what is asked depends on nothing but the study and what was told, so that nothing that happens to a search changes its end."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from fl_hydra.errors import UserError
from fl_hydra.runs.identity import run_hash
from fl_hydra.runs.ownership import owned
from fl_hydra.tuning.objective import Objective
from fl_hydra.tuning.space import Space, as_override, is_grid
from fl_hydra.tuning.study import Study, Told
from tests.conftest import Program
from tests.support.make import experiment

TINY = ("model.filters=1", "model.hidden=2", "batch_size=16", "evaluation.points=3", "engine=stacked")
LOCAL = ("algorithm=localsgd", "K=2", "rounds=3", *TINY)
SEARCH = ("-m", "hydra/sweeper=optuna", *LOCAL, "J=4,8", "optimizer.lr=tag(log,interval(1e-3,1))", "optimizer.weight_decay=choice(0,1e-3)")


def parsed(*words: str) -> list[Any]:
    return OverridesParser.create().parse_overrides(list(words))


def studies(folder: Path) -> dict[str, dict[str, Any]]:
    """What is kept of each study."""
    return {path.parent.name: json.loads(path.read_text()) for path in folder.glob("outputs/studies/*/study.json")}


def digests(folder: Path) -> dict[str, str]:
    return {path.parent.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("outputs/studies/*/study.json")}


def summaries(folder: Path) -> set[Path]:
    return set(folder.glob("outputs/*/*/*/summary.json"))


# Spaces and objectives


def test_lists_are_a_grid_and_all_else_is_searched() -> None:
    words = ("K=2,4", "J=choice(1,2)", "lr=interval(0.1,1)", "B=range(1,4)", "x=tag(log,interval(1,8))")
    assert [is_grid(each) for each in parsed(*words)] == [True, False, False, False, False]
    space = Space.of(parsed(*words[1:]))
    assert list(space.distributions) == ["J", "lr", "B", "x"]
    assert space.points() is None
    finite = Space.of(parsed("J=choice(1,2)", "B=range(1,4)"))
    assert finite.points() == [{"J": j, "B": b} for j in (1, 2) for b in (1, 2, 3)]
    assert finite.corners() == [{"J": 1, "B": 1}, {"J": 2, "B": 1}, {"J": 1, "B": 3}]


@pytest.mark.parametrize("word", ["lr=interval(1,0)", "lr=tag(log,interval(0,1))", "lr=range(1,1)"])
def test_a_space_that_is_none_is_refused(word: str) -> None:
    with pytest.raises(UserError, match="a space is key=interval"):
        Space.of(parsed(word))


@pytest.mark.parametrize(("value", "text"), [(None, "x=null"), (True, "x=true"), (1e-07, "x=1e-07"), (3, "x=3"), ("cosine", "x=cosine")])
def test_values_are_overrides_again(value: Any, text: str) -> None:
    assert as_override("x", value) == text
    assert parsed(text)[0].value() == value


ROWS = [
    {"round": 1, "samples": 10, "bytes_up": 3, "bytes_down": 4, "val/acc": 0.3, "val/loss": 2.0},
    {"round": 2, "samples": 20, "bytes_up": 6, "bytes_down": 8, "val/acc": 0.6, "val/loss": 1.0},
    {"round": 3, "samples": 30, "bytes_up": 9, "bytes_down": 12, "val/acc": 0.5, "val/loss": 1.5},
]


@pytest.mark.parametrize(
    ("typed", "value", "worst"),
    [
        ("val/acc", 0.5, 0.0),
        ("val/loss", 1.5, math.inf),
        ("samples@0.6", 20, math.inf),
        ("bytes@0.55", 14, math.inf),
        ("rounds@0.7", math.inf, math.inf),
    ],
)
def test_objectives(typed: str, value: float, worst: float) -> None:
    objective = Objective.of(typed)
    assert str(objective) == typed
    assert objective.value("finished", ROWS) == value
    assert objective.value("diverged", ROWS) == objective.worst == worst


@pytest.mark.parametrize("typed", ["test/acc", "accuracy", "bytes", "bytes@0", "bytes@1.5", "bytes@x", "val/acc@0.5"])
def test_objectives_that_are_none_are_refused(typed: str) -> None:
    with pytest.raises(UserError, match=r"objective="):
        Objective.of(typed)


def test_a_run_that_leaves_the_test_set_alone_is_another_run_of_the_same_weights(program: Program, tmp_path: Path) -> None:
    words = ("epochs=1", *TINY)
    assert run_hash(experiment(*words, "evaluation.test=true")) == run_hash(experiment(*words))
    program(*words, cwd=tmp_path)
    without = program(*words, "evaluation.test=false", cwd=tmp_path)
    assert without.status == 0 and "test" not in without.output
    found = [json.loads(path.read_text()) for path in summaries(tmp_path)]
    assert len(found) == 2 and found[0]["weights_sha256"] == found[1]["weights_sha256"]
    (blind,) = [each for each in found if each["config"].get("test") is False]
    assert blind["metrics"]["test/acc"] is None and blind["metrics"]["test/loss"] is None
    assert blind["metrics"]["val/acc"] is not None and blind["status"] == "finished"


# Searches

SAMPLERS: dict[str, dict[Any, Any]] = {
    "tpe": {"_target_": "optuna.samplers.TPESampler", "n_startup_trials": 3},
    "random": {"_target_": "optuna.samplers.RandomSampler"},
    "cmaes": {"_target_": "optuna.samplers.CmaEsSampler"},
    "gp": {"_target_": "optuna.samplers.GPSampler", "n_startup_trials": 3},
    "nsgaii": {"_target_": "optuna.samplers.NSGAIISampler", "population_size": 2},
}


def test_a_sampler_that_asks_for_the_same_again_is_named(tmp_path: Path) -> None:
    space = Space.of(parsed("x=interval(0.0,1)"))
    study = Study(tmp_path, space, True, OmegaConf.create({"_target_": "optuna.samplers.QMCSampler"}), 1)
    for value in (0.5, 0.6):  # the first point is drawn at random, the second is the first of the sequence, and so is the third
        trial = study.ask()
        assert trial is not None
        study.tell(Told(trial, value))
    with pytest.raises(UserError, match="QMCSampler asks for points that were tried before"):
        study.ask()


@pytest.mark.parametrize("sampler", list(SAMPLERS))
def test_what_is_asked_is_a_function_of_what_was_told(sampler: str, tmp_path: Path) -> None:
    """Of a study that is opened anew for each trial, too; and its name."""

    def asked(folder: Path, anew: bool) -> list[dict[str, Any]]:
        folder.mkdir(parents=True)
        space, config = Space.of(parsed("x=interval(0.0,1)", "y=tag(log,interval(0.1,10))")), OmegaConf.create(SAMPLERS[sampler])
        study = Study(folder, space, True, config, 1)
        for _ in range(6):
            trial = study.ask()
            assert trial is not None
            if anew:
                study = Study(folder, space, True, config, 1)
                assert study.open() == [trial]
            study.tell(Told(trial, -((float(trial.params["x"] or 0) - 0.3) ** 2)))
        return [told.trial.params for told in study.told()]

    points = asked(tmp_path / "one" / "study", False)
    assert asked(tmp_path / "two" / "study", True) == points
    assert len({json.dumps(point) for point in points}) == 6
    assert asked(tmp_path / "one" / "other", False) != points


@pytest.fixture(scope="module")
def searched(program: Program, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed search of two studies with four trials each."""
    folder = tmp_path_factory.mktemp("searched")
    result = program(*SEARCH, "hydra.sweeper.n_trials=4", cwd=folder)
    assert result.status == 0, result.output
    return folder


def test_a_search_has_a_study_for_each_point_and_no_more_than_its_trials(searched: Path, program: Program) -> None:
    found = studies(searched)
    assert sorted(study["where"]["J"] for study in found.values()) == [4, 8]
    for study in found.values():
        assert [trial["number"] for trial in study["trials"]] == list(range(4))
        assert len({json.dumps(trial["params"]) for trial in study["trials"]}) == 4
        best = max(study["trials"], key=lambda trial: trial["value"])
        assert study["trials"][study["best"]]["value"] == best["value"]
    assert len(summaries(searched)) == 8
    before = digests(searched)
    again = program(*SEARCH, "hydra.sweeper.n_trials=4", cwd=searched)
    assert again.status == 0 and "round " not in again.output
    assert digests(searched) == before and len(summaries(searched)) == 8


def test_trials_of_a_study_are_the_runs_of_its_parameters(searched: Path) -> None:
    values = {
        (summary["config"]["J"], summary["config"]["optimizer"]["lr"]): summary["metrics"]["val/acc"]
        for summary in (json.loads(path.read_text()) for path in summaries(searched))
    }
    for study in studies(searched).values():
        for trial in study["trials"]:
            assert values[study["where"]["J"], trial["params"]["optimizer.lr"]] == trial["value"]
    assert all(json.loads(path.read_text())["config"]["seed"] == 100 for path in summaries(searched))


def test_a_search_that_is_killed_goes_on_to_the_same_end(searched: Path, program: Program, tmp_path: Path) -> None:
    for kill in ({"kind": "round", "n": 5}, {"kind": "replace", "n": 9}):
        assert program(*SEARCH, "hydra.sweeper.n_trials=4", cwd=tmp_path, kill=kill).status == -9
    assert program(*SEARCH, "hydra.sweeper.n_trials=4", cwd=tmp_path).status == 0
    assert digests(tmp_path) == digests(searched)


def test_more_trials_go_on_and_a_lost_study_is_rebuilt_from_its_runs(searched: Path, program: Program, tmp_path: Path) -> None:
    shutil.copytree(searched / "outputs", tmp_path / "outputs")
    more = program(*SEARCH, "hydra.sweeper.n_trials=5", cwd=tmp_path)
    assert more.status == 0 and len(summaries(tmp_path)) == 10
    for name, study in studies(tmp_path).items():
        assert study["trials"][:4] == studies(searched)[name]["trials"]
    after = digests(tmp_path)
    shutil.rmtree(tmp_path / "outputs" / "studies")
    rebuilt = program(*SEARCH, "hydra.sweeper.n_trials=5", cwd=tmp_path)
    assert rebuilt.status == 0 and "round " not in rebuilt.output
    assert digests(tmp_path) == after


def test_another_question_is_another_study(searched: Path, program: Program, tmp_path: Path) -> None:
    words = [word for word in SEARCH if not word.startswith("J=")]
    program(*words, "J=4", "hydra.sweeper.n_trials=1", cwd=tmp_path)
    program(*words, "J=4", "hydra.sweeper.n_trials=1", "objective=val/loss", cwd=tmp_path)
    program(*words, "J=4", "hydra.sweeper.n_trials=1", "tune.seeds=[100,101]", cwd=tmp_path)
    program(*words, "J=4", "hydra.sweeper.n_trials=1", "optimizer.momentum=0.5", cwd=tmp_path)
    assert len(studies(tmp_path)) == 4
    assert set(studies(tmp_path)) & set(studies(searched)) == set()


def test_trials_that_train_together_are_those_that_train_alone(program: Program, tmp_path: Path) -> None:
    words = (
        *SEARCH[:-2],
        "optimizer.lr=choice(0.01,0.02,0.05,0.1,0.2,0.5,1,2)",
        "hydra/sweeper/sampler=random",
        "hydra.sweeper.n_trials=8",
    )
    together = program(*words, "hydra/launcher=packed", cwd=tmp_path)
    assert together.status == 0 and "2 runs together" in together.output
    (tmp_path / "alone").mkdir()
    assert program(*words, "hydra.sweeper.n_jobs=2", cwd=tmp_path / "alone").status == 0
    assert digests(tmp_path) == digests(tmp_path / "alone")


def test_a_space_that_is_used_up_ends_the_search(program: Program, tmp_path: Path) -> None:
    words = ("-m", "hydra/sweeper=optuna", *LOCAL, "J=4", "optimizer.lr=choice(0.01,0.1)", "scheduler=choice(constant,cosine)")
    result = program(*words, "hydra.sweeper.n_trials=9", cwd=tmp_path)
    assert result.status == 0 and "the space is used up" in result.output
    (study,) = studies(tmp_path).values()
    assert len({json.dumps(trial["params"]) for trial in study["trials"]}) == len(study["trials"]) == 4


def test_a_trial_that_diverges_is_the_worst(program: Program, tmp_path: Path) -> None:
    words = ("-m", "hydra/sweeper=optuna", *LOCAL, "J=4", "optimizer.lr=choice(0.05,1e20)", "objective=val/loss")
    assert program(*words, "hydra.sweeper.n_trials=2", cwd=tmp_path).status == 0
    (study,) = studies(tmp_path).values()
    values = {trial["params"]["optimizer.lr"]: trial["value"] for trial in study["trials"]}
    assert values[1e20] == math.inf and math.isfinite(values[0.05])
    assert study["trials"][study["best"]]["params"]["optimizer.lr"] == 0.05


def test_a_trial_that_fails_is_tried_again_by_the_same_command(searched: Path, program: Program, tmp_path: Path) -> None:
    before = "def broken(self):\n    raise OSError(5, 'gone')\nTrainer.run_round = broken"
    failed = program(*SEARCH, "hydra.sweeper.n_trials=4", cwd=tmp_path, before=before)
    assert failed.status == 1 and "will be tried again by the same command" in failed.output
    assert program(*SEARCH, "hydra.sweeper.n_trials=4", cwd=tmp_path).status == 0
    assert digests(tmp_path) == digests(searched)


def test_one_process_searches_a_study_at_a_time(searched: Path, program: Program, tmp_path: Path) -> None:
    shutil.copytree(searched / "outputs", tmp_path / "outputs")
    before = digests(tmp_path)
    folder = min((tmp_path / "outputs" / "studies").iterdir())
    with owned(folder, print):
        busy = program(*SEARCH, "hydra.sweeper.n_trials=6", cwd=tmp_path)
    assert busy.status == 2 and f"{folder.name} is being written by process" in busy.output
    assert digests(tmp_path)[folder.name] == before[folder.name]


# What was chosen


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
    with pytest.raises(UserError, match="not every run of section=grid has it"):
        of_runs("grid", tmp_path / "outputs", ["optimizer.speed"], ["seed"], "val/acc")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("optimizer.lr=0.1,0.2",), "there is nothing to search"),
        (("optimizer.lr=interval(1,0)",), "a space is key=interval"),
        (("optimizer.lr=interval(0.1,1)", "hydra.sweeper.n_trials=0"), "at least 1, is needed"),
        (("optimizer.lr=interval(0.1,1)", "objective=test/acc"), "the test set chooses nothing"),
        (("optimizer.lr=interval(0.1,1)", "seed=1"), "trials have seeds of their own"),
        (("optimizer.speed=interval(0.1,1)",), "optimizer.speed"),
        (("optimizer.lr=interval(-1,1)",), "the learning rate must be greater than 0"),
        (("optimizer.lr=interval(0.1,1)", "hydra/sweeper/sampler=grid"), "an interval has no end of points"),
        (("optimizer.lr=interval(0.1,1)", "tune.seeds=[]"), "at least 1 seed is needed"),
    ],
)
def test_what_cannot_be_searched_is_one_mistake(words: tuple[str, ...], line: str, program: Program, tmp_path: Path) -> None:
    result = program("-m", "hydra/sweeper=optuna", *LOCAL, *words, cwd=tmp_path)
    assert result.status == 2 and line in result.output, result.output
    assert result.output.count("error:") == 1 and not summaries(tmp_path)


def test_a_damaged_journal_is_named_and_the_study_rebuilt_once_it_is_moved(searched: Path, program: Program, tmp_path: Path) -> None:
    shutil.copytree(searched / "outputs", tmp_path / "outputs")
    for journal in (tmp_path / "outputs" / "studies").glob("*/journal.log"):
        journal.write_bytes(b"{broken\n" + journal.read_bytes())
    damaged = program(*SEARCH, "hydra.sweeper.n_trials=4", cwd=tmp_path)
    assert damaged.status == 2 and "is damaged" in damaged.output
    for journal in (tmp_path / "outputs" / "studies").glob("*/journal.log"):
        journal.unlink()
    assert program(*SEARCH, "hydra.sweeper.n_trials=4", cwd=tmp_path).status == 0
    assert digests(tmp_path) == digests(searched)
