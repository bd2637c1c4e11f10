"""Searches that give trials up, or have two objectives."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fl_hydra.errors import UserError
from fl_hydra.tuning.space import as_override
from tests.conftest import Program
from tests.support.searches import LOCAL, SEARCH, TINY, digests, studies, summaries

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
    assert result.status == 0 and "each continues alone" in result.output, result.output
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


def test_a_study_is_drawn(pruned: Path, tmp_path: Path) -> None:
    from fl_hydra.report.figures.trials import draw_study

    (study,) = studies(pruned).values()
    assert draw_study(study, tmp_path / "one.png").stat().st_size > 10_000
    two = {**study, "objectives": ["val/acc", "bytes@0.5"], "trials": [{**trial, "values": [0.5, 10.0]} for trial in study["trials"]]}
    assert draw_study(two, tmp_path / "two.png").stat().st_size > 10_000
