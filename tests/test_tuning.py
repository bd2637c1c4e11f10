"""Searches: what is asked depends on nothing but the study and what was told, so that nothing that happens to a search changes its end."""

from __future__ import annotations

import hashlib
import json
import math
import re
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
from fl_hydra.tuning.pruning import Pruning
from fl_hydra.tuning.space import Space, as_override, is_grid
from fl_hydra.tuning.study import Report, Study, Trial
from tests.conftest import Program
from tests.support.make import experiment

TINY = ("model.filters=1", "model.hidden=2", "batch_size=16", "evaluation.points=3", "engine=stacked")
LOCAL = ("algorithm=localsgd", "K=2", "rounds=3", *TINY)
SEARCH = (
    "-m",
    "hydra/sweeper=optuna",
    "section=localsgd",
    *LOCAL,
    "J=4,8",
    "optimizer.lr=tag(log,interval(1e-3,1))",
    "optimizer.weight_decay=choice(0,1e-3)",
)


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
    with pytest.raises(UserError, match="QMCSampler asks for points that were tried before"):
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
        with pytest.raises(UserError, match="parts of the budget between 0 and 1"):
            Pruning.of(OmegaConf.create(PRUNERS["asha"]), rungs)
    with pytest.raises(UserError, match="nothing is pruned"):
        Pruning.of(None, [0.5])
    with pytest.raises(UserError, match="see Optuna's SuccessiveHalvingPruner"):
        Pruning.of(OmegaConf.create({**PRUNERS["asha"], "min_resource": 0}), None)


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
        best = max(study["trials"], key=lambda trial: trial["values"][0])
        assert study["trials"][study["best"][0]]["values"][0] == best["values"][0]
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
            assert values[study["where"]["J"], trial["params"]["optimizer.lr"]] == trial["values"][0]
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
        "hydra.sweeper.n_trials=4",
        "hydra.sweeper.n_jobs=2",
    )
    together = program(*words, "hydra/launcher=packed", cwd=tmp_path)
    assert together.status == 0 and "2 runs together" in together.output
    (tmp_path / "alone").mkdir()
    assert program(*words, cwd=tmp_path / "alone").status == 0
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
    values = {trial["params"]["optimizer.lr"]: trial["values"][0] for trial in study["trials"]}
    assert values[1e20] == math.inf and math.isfinite(values[0.05])
    assert study["trials"][study["best"][0]]["params"]["optimizer.lr"] == 0.05


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


PRUNED = (
    *("-m", "hydra/sweeper=optuna", "hydra/launcher=packed", "hydra/sweeper/pruner=asha", "hydra/sweeper/sampler=random"),
    *("algorithm=localsgd", "K=2", "J=4", "rounds=9", *TINY[:-2], "engine=stacked", "evaluation.points=9"),
    *("optimizer.lr=choice(0.001,0.01,0.03,0.05,0.1,0.2,0.5,1e20)", "optimizer.weight_decay=choice(0,1e-3)", "hydra.sweeper.n_trials=12"),
)


@pytest.fixture(scope="module")
def pruned(program: Program, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed search of twelve trials, of which some diverge and some are given up."""
    folder = tmp_path_factory.mktemp("pruned")
    result = program(*PRUNED, cwd=folder)
    assert result.status == 0 and "3 runs together" in result.output, result.output
    return folder


def test_trials_that_are_given_up_have_no_summary_and_can_be_asked_for_in_full(pruned: Path, program: Program, tmp_path: Path) -> None:
    (study,) = studies(pruned).values()
    states = [trial["state"] for trial in study["trials"]]
    assert len(states) == 12 and states.count("pruned") >= 3 and "complete" in states
    assert any(trial["values"] == [0.0] and trial["state"] == "complete" for trial in study["trials"])  # it diverged
    assert len(summaries(pruned)) == states.count("complete")
    best = max((trial for trial in study["trials"] if trial["state"] == "complete"), key=lambda trial: trial["values"][0])
    assert study["best"] == [best["number"]]
    shutil.copytree(pruned / "outputs", tmp_path / "outputs")
    trial = next(trial for trial in study["trials"] if trial["state"] == "pruned")
    words = [word for word in PRUNED[5:] if not word.startswith(("optimizer", "hydra"))]
    params = [as_override(key, value) for key, value in trial["params"].items()]
    whole = program(*words, *params, "seed=100", "evaluation.test=false", cwd=tmp_path)
    assert whole.status == 0 and "resumed at round" in whole.output and len(summaries(tmp_path)) == len(summaries(pruned)) + 1
    before = digests(tmp_path)  # which does not make it another search
    shutil.rmtree(tmp_path / "outputs" / "studies")
    assert program(*PRUNED, cwd=tmp_path).status == 0
    assert digests(tmp_path) == before


def test_a_pruned_search_that_is_killed_goes_on_to_the_same_end(pruned: Path, program: Program, tmp_path: Path) -> None:
    for kill in ({"kind": "round", "n": 5}, {"kind": "replace", "n": 14}):
        assert program(*PRUNED, cwd=tmp_path, kill=kill).status == -9
    assert program(*PRUNED, cwd=tmp_path).status == 0
    assert digests(tmp_path) == digests(pruned)


def test_a_run_that_diverges_where_it_would_pause_has_diverged_wherever_it_is_killed(program: Program, tmp_path: Path) -> None:
    words = (*LOCAL, "J=4", "optimizer.lr=1e20", "until=0.3")
    for n in range(2, 20):
        folder = tmp_path / str(n)
        folder.mkdir()
        killed = program(*words, cwd=folder, kill={"kind": "replace", "n": n})
        ended = program(*words, cwd=folder)
        assert ended.status == 1 and "diverged" in ended.output, ended.output
        if killed.status != -9:
            break
    assert n > 4  # it was killed before each of its files, the summary among them


def test_a_search_with_every_kind_of_trial_has_exactly_its_trials(program: Program, tmp_path: Path) -> None:
    """One fails, and takes no other of its pack with it; some diverge, some are given up, and the search is killed."""
    before = """
whole = Trainer.run_round
def broken(self):
    if any(packed_run.experiment.optimizer.lr == 0.2 for packed_run in self.runs):
        raise RuntimeError("broken")
    return whole(self)
Trainer.run_round = broken"""
    words = (*PRUNED, "hydra.sweeper.max_failure_rate=0.5")
    assert program(*words, cwd=tmp_path, before=before, kill={"kind": "replace", "n": 30}).status == -9
    result = program(*words, cwd=tmp_path, before=before)
    assert result.status == 0 and "each goes on alone" in result.output, result.output
    (study,) = studies(tmp_path).values()
    assert [trial["number"] for trial in study["trials"]] == list(range(12))
    states = {trial["number"]: trial["state"] for trial in study["trials"]}
    lr = {trial["number"]: trial["params"]["optimizer.lr"] for trial in study["trials"]}
    assert (
        {number for number, state in states.items() if state == "failed"} == {number for number, each in lr.items() if each == 0.2} != set()
    )
    assert {"complete", "pruned"} <= set(states.values()) and 1e20 in lr.values()
    best = max(trial["values"][0] for trial in study["trials"] if trial["state"] == "complete")
    assert [study["trials"][number]["values"] for number in study["best"]] == [[best]]


def test_two_objectives_have_a_front(program: Program, tmp_path: Path) -> None:
    from fl_hydra.tuning.__main__ import of_studies

    words = (
        *SEARCH[:-3],
        "J=choice(1,2,8,16)",
        "optimizer.lr=choice(0.01,0.1)",
        "objective=val/acc+bytes@0.12",
        "hydra.sweeper.n_trials=6",
    )
    assert program(*words, cwd=tmp_path).status == 0
    (study,) = studies(tmp_path).values()
    values = {trial["number"]: trial["values"] for trial in study["trials"]}
    front = [
        n for n, (acc, cost) in values.items() if not any(a >= acc and c <= cost and (a, c) != (acc, cost) for a, c in values.values())
    ]
    assert sorted(study["best"]) == front
    with pytest.raises(UserError, match="name one with --trial"):
        of_studies("localsgd", tmp_path / "outputs")
    (chosen,) = of_studies("localsgd", tmp_path / "outputs", front[0])
    assert chosen.values == study["trials"][front[0]]["params"]
    refused = program(*words, "hydra/sweeper/pruner=asha", cwd=tmp_path)
    assert refused.status == 2 and "trials are pruned by one objective" in refused.output


def test_points_that_differ_in_nothing_are_one_study(program: Program, tmp_path: Path) -> None:
    words = ("-m", "hydra/sweeper=optuna", "algorithm=fedavg", "K=4", "C=0.5", "rounds=1", *TINY, "optimizer.lr=choice(0.01,0.1)")
    assert program(*words, "sharding=iid,classes", "N_c=5,10", "hydra.sweeper.n_trials=1", cwd=tmp_path).status == 0
    where = [study["where"] for study in studies(tmp_path).values()]
    common = {"K": 4, "C": 0.5, "batch_size": 16, "optimizer": "sgdm"}
    apart = ({"sharding": "classes", "N_c": 10}, {"sharding": "classes", "N_c": 5}, {"sharding": "iid"})
    assert sorted(map(sorted, (each.items() for each in where)), key=str) == sorted(
        (sorted({**common, **each}.items()) for each in apart), key=str
    )


def test_what_an_option_that_is_searched_leaves_fixed_is_part_of_the_question(program: Program, tmp_path: Path) -> None:
    words = ("-m", "hydra/sweeper=optuna", *LOCAL, "J=4", "optimizer=choice(sgdm,sgd)", "hydra.sweeper.n_trials=1")
    for lr in ("0.1", "0.01"):
        assert program(*words, f"optimizer.lr={lr}", cwd=tmp_path).status == 0
    assert len(studies(tmp_path)) == 2
    fedavg = ("-m", "hydra/sweeper=optuna", "algorithm=fedavg", "K=4", "C=0.5", "rounds=1", *TINY, "sharding=choice(iid,classes)")
    assert program(*fedavg, "N_c=5,10", "hydra.sweeper.n_trials=1", cwd=tmp_path).status == 0
    assert sorted(study["where"].get("N_c", 0) for study in studies(tmp_path).values()) == [0, 0, 5, 10]
    methods = ("-m", "hydra/sweeper=optuna", "algorithm=choice(localsgd,slowmo)", "K=2", "J=2", "rounds=1", *TINY)
    assert program(*methods, "hydra.sweeper.n_trials=1", cwd=tmp_path).status == 0


def test_a_study_is_the_same_however_its_grid_was_typed(searched: Path, program: Program, tmp_path: Path) -> None:
    shutil.copytree(searched / "outputs", tmp_path / "outputs")
    words = [word for word in SEARCH if not word.startswith("J=")]
    narrowed = program(*words, "J=4", "hydra.sweeper.n_trials=4", cwd=tmp_path)
    assert narrowed.status == 0 and "round " not in narrowed.output
    assert studies(tmp_path) == studies(searched)


def test_a_study_whose_storage_is_lost_is_the_same_after_more_trials_were_asked_for(program: Program, tmp_path: Path) -> None:
    words = (
        *SEARCH[:-3],
        "J=4",
        "optimizer.lr=choice(0.01,0.02,0.05,0.1,0.2,0.5,1,2)",
        "hydra/sweeper/sampler=random",
        "hydra/launcher=packed",
    )
    assert program(*words, "hydra.sweeper.n_trials=4", cwd=tmp_path).status == 0
    assert program(*words, "hydra.sweeper.n_trials=8", cwd=tmp_path).status == 0
    before = digests(tmp_path)
    for journal in tmp_path.glob("outputs/studies/*/journal.log"):
        journal.unlink()
    assert program(*words, "hydra.sweeper.n_trials=8", cwd=tmp_path).status == 0
    assert digests(tmp_path) == before


def test_every_search_of_a_section_is_one(program: Program, tmp_path: Path) -> None:
    """Named after a section that takes up what it finds; one of them is searched here."""
    from fl_hydra.arguments import sections
    from fl_hydra.paths import SWEEPS

    names = sorted(path.stem for path in (SWEEPS / "search").glob("*.yaml"))
    assert set(names) <= {name for track in sections().values() for name in track}
    makefile = (SWEEPS.parent / "Makefile").read_text()
    assert sorted(re.findall(r"^tune-(\w+):", makefile, re.M)) == names
    words = ("dataset=digits", "K=4", "rounds=3", "sharding=iid", "J=4", *TINY, "hydra.sweeper.n_trials=2")
    assert program("-m", "+search=heterogeneity", *words, cwd=tmp_path).status == 0
    (study,) = studies(tmp_path).values()
    assert study["section"] == "heterogeneity" and len(study["trials"]) == 2


def test_a_study_is_drawn(pruned: Path, tmp_path: Path) -> None:
    from fl_hydra.report.figures.study import draw_study

    (study,) = studies(pruned).values()
    assert draw_study(study, tmp_path / "one.png").stat().st_size > 10_000
    two = {**study, "objectives": ["val/acc", "bytes@0.5"], "trials": [{**trial, "values": [0.5, 10.0]} for trial in study["trials"]]}
    assert draw_study(two, tmp_path / "two.png").stat().st_size > 10_000


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


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("optimizer.lr=0.1,0.2",), "there is nothing to search"),
        (("optimizer.lr=interval(1,0)",), "this is not a space; it is key=interval"),
        (("optimizer.lr=interval(0.1,1)", "hydra.sweeper.n_trials=0"), "at least 1, is needed"),
        (("optimizer.lr=interval(0.1,1)", "objective=test/acc"), "the test set chooses nothing"),
        (("optimizer.lr=interval(0.1,1)", "seed=1"), "trials have seeds of their own"),
        (("optimizer.speed=interval(0.1,1)",), "optimizer.speed"),
        (("optimizer.lr=interval(-1,1)",), "the learning rate must be greater than 0"),
        (("optimizer.lr=interval(0.1,1)", "hydra/sweeper/sampler=grid"), "an interval has no end of points"),
        (("optimizer.lr=interval(0.1,1)", "tune.seeds=[]"), "at least 1 seed is needed"),
        (("optimizer.lr=interval(0.1,1)", "hydra/sweeper/pruner=asha", "objective=bytes@0.5"), "nothing can be pruned by it"),
        (("optimizer.lr=interval(0.1,1)", "hydra.sweeper.storage=mysql"), "choose journal or sqlite"),
        (("optimizer.lr=interval(0.1,1)", "until=0.5"), "trials have until=null"),
        (("optimizer.lr=interval(0.1,1)", "evaluation.test=true"), "trials have evaluation.test=false"),
        (("optimizer.lr=0.1", "tune.seeds=choice([1],[2])"), "changes nothing in a run"),
        (("optimizer.lr=interval(0.1,1)", "hydra.sweeper.direction=maximize"), "direction"),
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
