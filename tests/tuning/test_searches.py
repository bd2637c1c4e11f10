"""Searches: nothing that happens to one changes its end."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path

import pytest

from fl_hydra.runs.ownership import owned
from tests.conftest import Program
from tests.support.searches import LOCAL, SEARCH, TINY, digests, studies, summaries


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
        (("optimizer.lr=interval(0.1,1)", "hydra/sweeper/sampler=grid"), "an interval has infinitely many points"),
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
