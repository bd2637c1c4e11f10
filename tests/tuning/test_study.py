"""Spaces, objectives, samplers and pruners: what is asked depends on nothing but the study and what was told."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from fl_hydra.errors import UserError
from fl_hydra.runs.identity import run_hash
from fl_hydra.tuning.objective import Objective
from fl_hydra.tuning.pruning import Pruning
from fl_hydra.tuning.space import Space, as_override, is_grid
from fl_hydra.tuning.study import Report, Study, Trial
from tests.conftest import Program
from tests.support.make import experiment
from tests.support.searches import LOCAL, parsed, summaries


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
    with pytest.raises(UserError, match="this is not a space; it is key=interval"):
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
    words = (*LOCAL, "J=4")
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
    study = Study(tmp_path, space, ["maximize"], OmegaConf.create({"_target_": "optuna.samplers.QMCSampler"}), Pruning(), 1)
    for value in (0.5, 0.6):  # the first point is drawn at random, the second is the first of the sequence, and so is the third
        trial = study.ask()
        assert trial is not None
        study.tell([Report(trial, [value], True)])
    with pytest.raises(UserError, match="QMCSampler proposes points that were tried before"):
        study.ask()


@pytest.mark.parametrize("sampler", list(SAMPLERS))
def test_what_is_asked_is_a_function_of_what_was_told(sampler: str, tmp_path: Path) -> None:
    """Of a study that is opened anew for each trial, too; and its name."""

    def asked(folder: Path, anew: bool) -> list[dict[str, Any]]:
        folder.mkdir(parents=True)
        space, config = Space.of(parsed("x=interval(0.0,1)", "y=tag(log,interval(0.1,10))")), OmegaConf.create(SAMPLERS[sampler])
        study = Study(folder, space, ["maximize"], config, Pruning(), 1)
        for _ in range(6):
            trial = study.ask()
            assert trial is not None
            if anew:
                study = Study(folder, space, ["maximize"], config, Pruning(), 1)
                assert study.active() == [trial]
            study.tell([Report(trial, [-((float(trial.params["x"] or 0) - 0.3) ** 2)], True)])
        return [told.trial.params for told in study.told()]

    points = asked(tmp_path / "one" / "study", False)
    assert asked(tmp_path / "two" / "study", True) == points
    assert len({json.dumps(point) for point in points}) == 6
    assert asked(tmp_path / "one" / "other", False) != points


# Stages and pruning


PRUNERS: dict[str, dict[Any, Any]] = {
    "asha": {"_target_": "optuna.pruners.SuccessiveHalvingPruner", "min_resource": 1, "reduction_factor": 3},
    "median": {"_target_": "optuna.pruners.MedianPruner", "n_startup_trials": 2},
}


def opened(folder: Path, pruner: str = "asha", together: int = 4, storage: str = "journal") -> Study:
    folder.mkdir(parents=True, exist_ok=True)
    space, sampler = Space.of(parsed("x=interval(0.0,1)", "y=choice(0,1)")), OmegaConf.create(SAMPLERS["tpe"])
    return Study(folder, space, ["maximize"], sampler, Pruning.of(OmegaConf.create(PRUNERS[pruner]), None), together, storage)


def reported(trial: Trial, pruning: Pruning) -> Report:
    """Of a run that comes near to its end from the start; that of one trial fails."""
    if trial.number == 5:
        return Report(trial, None, True, "broken")
    x = float(trial.params["x"] or 0)
    until = pruning.until(trial.passed)
    return Report(trial, [(until or 1.0) * (1 - (x - 0.3) ** 2)], until is None)


def ended(study: Study, trials: int = 16) -> list[Any]:
    """A search to its end."""
    while True:
        told, active = study.told(), study.active()
        while len(active) < study.together and len(told) + len(active) < trials and (trial := study.ask()):
            active.append(trial)
        if not active:
            return told
        study.tell([reported(trial, study.pruning) for trial in active])


def test_milestones_keep_those_that_go_on_and_those_that_begin_in_step() -> None:
    asha = Pruning.of(OmegaConf.create(PRUNERS["asha"]), None)
    assert asha.milestones == pytest.approx([n / 9 for n in range(1, 9)])
    assert [asha.step(passed) for passed in range(9)] == [1, None, 3, *[None] * 6]
    assert [asha.until(passed) for passed in (7, 8)] == [pytest.approx(8 / 9), None]
    given = Pruning.of(OmegaConf.create(PRUNERS["median"]), [0.25, 0.5])
    assert given.milestones == (0.25, 0.5, 0.75) and [given.step(passed) for passed in range(4)] == [1, 2, None, None]


@pytest.mark.parametrize("pruner", list(PRUNERS))
def test_hopeless_trials_are_given_up_and_the_best_is_not(pruner: str, tmp_path: Path) -> None:
    study = opened(tmp_path, pruner)
    told = ended(study)
    assert [each.trial.number for each in told] == list(range(16))
    states = {each.state for each in told}
    assert states == {"complete", "pruned", "failed"} and [each.trial.number for each in told if each.state == "failed"] == [5]
    complete = [each for each in told if each.state == "complete"]
    (best,) = study.best()
    assert best.values == max(each.values for each in complete)
    # What a curve here shows at its first rung is what it shows at its end: nobody who was given up would have been the best.
    distance = {each.trial.number: abs(float(each.trial.params["x"] or 0) - 0.3) for each in told if each.state != "failed"}
    assert min(distance, key=lambda number: distance[number]) == best.trial.number
    if pruner == "asha":
        rung = [each for each in told if each.state != "failed"]
        first = sum(study.pruning.step(each.trial.passed) == 1 for each in rung if each.state == "pruned")
        assert first >= len(rung) // 2


@pytest.mark.parametrize("pruner", list(PRUNERS))
def test_a_study_that_is_cut_off_after_any_entry_goes_on_to_the_same_end(pruner: str, tmp_path: Path) -> None:
    told = ended(opened(tmp_path / "whole" / "study", pruner))
    lines = (tmp_path / "whole" / "study" / "journal.log").read_bytes().splitlines(keepends=True)
    for kept in range(2, len(lines), 11):
        folder = tmp_path / str(kept) / "study"
        folder.mkdir(parents=True)
        (folder / "journal.log").write_bytes(b"".join(lines[:kept]) + lines[kept][: kept % 2 * 5])
        assert ended(opened(folder, pruner)) == told


def test_a_database_holds_the_same_study(tmp_path: Path) -> None:
    assert ended(opened(tmp_path / "one" / "study", storage="sqlite")) == ended(opened(tmp_path / "two" / "study"))
    assert (tmp_path / "one" / "study" / "study.db").exists()


def test_rungs_and_pruners_that_are_none_are_refused() -> None:
    for rungs in ([0.5, 0.2], [0.0, 0.5], [1.0], []):
        with pytest.raises(UserError, match="fractions of the budget between 0 and 1"):
            Pruning.of(OmegaConf.create(PRUNERS["asha"]), rungs)
    with pytest.raises(UserError, match="nothing is pruned"):
        Pruning.of(None, [0.5])
    with pytest.raises(UserError, match="see Optuna's SuccessiveHalvingPruner"):
        Pruning.of(OmegaConf.create({**PRUNERS["asha"], "min_resource": 0}), None)
