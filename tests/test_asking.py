"""What a user asks: what would run, how far it is, which runs there are, how they differ; and taking some away."""

from __future__ import annotations

import io
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from fl_hydra.arguments import as_text, as_typed
from fl_hydra.errors import UserError
from fl_hydra.make import _of_list, _of_report
from fl_hydra.runs.__main__ import main
from fl_hydra.runs.course import Course
from fl_hydra.runs.finding import find_run
from fl_hydra.runs.folder import join_section, run_folders, section_runs, sections
from fl_hydra.runs.foresight import pace_key
from fl_hydra.runs.identity import describe
from fl_hydra.runs.listing import Condition, chosen, listed, tells_apart
from fl_hydra.runs.ownership import owned
from fl_hydra.runs.standing import in_words
from fl_hydra.runs.status import all_standings, standing
from tests.conftest import Program
from tests.support.make import PROJECT, experiment
from tests.test_report import write_run

TINY = ("model.filters=1", "model.hidden=2", "batch_size=16", "evaluation.points=3", "engine=stacked", "epochs=1")
GRID = ("-m", "algorithm=localsgd", "K=2", "J=4,8", "seed=0,1", *TINY)


def content(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def ask(monkeypatch: pytest.MonkeyPatch, outputs: Path, *words: str) -> int:
    """The exit status of `python -m fl_hydra.runs`."""
    monkeypatch.setattr(sys, "argv", ["runs", "--outputs", str(outputs), *words])
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


# What would run


def test_a_dry_run_says_what_there_is_to_do_and_does_nothing(program: Program, tmp_path: Path) -> None:
    dry = program(*GRID, "section=mine", "dry_run=true", cwd=tmp_path)
    assert dry.status == 0, dry.output
    assert "4 points, 4 runs: 4 to train" in dry.output
    assert "few rounds" in dry.output and "disk: about" in dry.output
    assert content(tmp_path) == set(), "nothing was written"

    killed = program(*GRID, "checkpoint.seconds=0", "section=mine", cwd=tmp_path, kill={"kind": "round", "n": 15})
    assert killed.status == -signal.SIGKILL
    before = {path: path.read_bytes() for path in content(tmp_path) if path.is_file()}
    dry = program(*GRID, "section=other", "dry_run=true", cwd=tmp_path)
    assert re.search(r"4 runs: 1 finished, 1 to resume, 2 to train", dry.output), dry.output
    assert re.search(r"to resume: J=4 seed=1 \(from [1-9]\d%\)", dry.output)
    assert "from runs of equal settings that were trained here" in dry.output, "of J=4"
    assert {path: path.read_bytes() for path in content(tmp_path) if path.is_file()} == before

    assert program(*GRID, cwd=tmp_path).status == 0
    dry = program(*GRID, "dry_run=true", cwd=tmp_path)
    assert "4 finished\n  nothing to train" in dry.output


def test_a_search_says_how_many_trials_are_missing(program: Program, tmp_path: Path) -> None:
    """And its trials are of no section."""
    search = ("-m", "hydra/sweeper=optuna", "algorithm=localsgd", "K=2", "J=4,8", *TINY, "optimizer.lr=tag(log,interval(1e-3,1))")
    dry = program(*search, "hydra.sweeper.n_trials=2", "section=mine", "dry_run=true", cwd=tmp_path)
    assert "2 studies of 2 trials: 0 trials ended, 4 missing" in dry.output, dry.output
    assert content(tmp_path) == set()
    assert program(*search, "hydra.sweeper.n_trials=2", "section=mine", cwd=tmp_path).status == 0
    dry = program(*search, "hydra.sweeper.n_trials=3", "section=mine", "dry_run=true", cwd=tmp_path)
    assert "2 studies of 3 trials: 4 trials ended, 2 missing" in dry.output, dry.output
    outputs = tmp_path / "outputs"
    assert len(run_folders(outputs)) == 4
    with pytest.raises(UserError, match="no run was asked for"):
        sections(outputs)
    assert [each.name for each in all_standings(outputs)] == ["(trials of searches)"]


def test_equal_paces_are_of_runs_that_differ_in_numbers_only() -> None:
    def key(*overrides: str) -> str:
        return pace_key(describe(experiment("algorithm=localsgd", "K=2", *overrides)))

    assert key("seed=1", "optimizer.lr=1", "epochs=3", "scheduler=constant") == key()
    for other in ("J=4", "batch_size=16", "precision=bf16", "model.filters=2", "optimizer=adamw", "optimizer.clip=1"):
        assert key(other) != key(), other


# Sizes


@pytest.mark.parametrize("path", sorted((PROJECT / "sweeps" / "sweep").glob("*/*.yaml")), ids=lambda path: path.stem)
def test_a_section_says_what_it_is_and_has_three_sizes(path: Path) -> None:
    head = path.read_text().partition("defaults:")[0]
    assert all(word in head for word in ("Question:", "Axes:", "Budget:", "Seed")), head
    content = OmegaConf.load(path)
    sizes = content.hydra.sweeper.sizes
    assert set(sizes) == {"short", "smoke"}
    for size in sizes.values():
        seeds = str(size.get("seed", content.hydra.sweeper.params.get("seed", "")))
        assert "," not in seeds, "one seed"
    assert sizes.smoke.get("dataset") == "digits" or "dataset.text" in sizes.smoke, "nothing is downloaded"


def test_a_size_is_narrowed_by_the_command_line_and_has_a_section_of_its_own(program: Program, tmp_path: Path) -> None:
    smoke = ("-m", "+sweep/track_a=localsgd", "size=smoke")
    result = program(*smoke, "K=2", "rounds=2", cwd=tmp_path)
    assert "2 of 2 points finished" in result.output, result.output
    assert sections(tmp_path / "outputs") == ["localsgd-smoke"]
    assert all("/K2-" in str(folder) and "-s1-" in folder.name for folder in section_runs("localsgd-smoke", tmp_path / "outputs"))
    assert program(*smoke, "size=tiny", cwd=tmp_path).status == 2
    assert "only sections have sizes" in program("-m", "size=smoke", "K=2,4", "algorithm=localsgd", cwd=tmp_path).output
    assert "this is a single run" in program("size=smoke", cwd=tmp_path).output


def test_the_shakespeare_that_comes_with_the_project_is_enough(program: Program, tmp_path: Path) -> None:
    dry = program("-m", "+sweep/track_b=shakespeare", "size=smoke", "dry_run=true", "samples=96", f"data={tmp_path}", cwd=tmp_path)
    assert "4 points, 4 runs: 4 to train" in dry.output, dry.output


def test_sections_at_smoke_size_end_well_only_if_all_points_do(tmp_path: Path) -> None:
    def smoke(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "fl_hydra.sweeping.smoke", *words, f"outputs={tmp_path}", "threads=1", "rounds=2"]
        return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)

    bad = smoke("localsgd", "fedavg", "K=4", "optimizer.lr=1e20")
    assert bad.returncode == 1, bad.stdout
    assert "failed: localsgd, fedavg" in bad.stdout, "the second one is not left out"
    assert smoke("nothing").returncode == 2


def test_make_passes_sizes_filters_and_orders_on() -> None:
    assert _of_report(["localsgd", "size=smoke", "K=2", "outputs=x"]) == ["localsgd-smoke", "--outputs=x"]
    assert _of_report(["localsgd", "size=smoke", "section=mine"]) == ["mine"]
    assert _of_list(["list"], ["FILTER=K=2 optimizer.lr<0.1", "SORT=-val/acc", "outputs=x", "J=4"]) == [
        "list",
        "K=2",
        "optimizer.lr<0.1",
        "--sort=-val/acc",
        "--outputs=x",
        "J=4",
    ]


# How far it is


def test_a_sweep_says_where_it_is_and_what_sets_each_run_apart(program: Program, tmp_path: Path) -> None:
    result = program(*GRID, cwd=tmp_path)
    headers = [line for line in result.output.splitlines() if re.match(r"\d of 4", line)]
    assert [re.sub(r", .* left", "", line) for line in headers] == [
        f"{n} of 4: J={J} seed={seed}" for n, (J, seed) in enumerate([(4, 0), (4, 1), (8, 0), (8, 1)], 1)
    ]
    assert all(" left: " in line for line in headers[1:]), headers
    packed = program(*GRID, "optimizer.lr=0.1", "hydra/launcher=packed", cwd=tmp_path).output
    assert re.search(r"^1 to 2 of 4$", packed, re.M) and re.search(r"^3 to 4 of 4, .* left$", packed, re.M), packed
    assert "J=4 seed=1: digits localsgd" in packed


def test_time_left_is_that_of_the_missing_samples_at_the_pace_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("fl_hydra.runs.course.time.monotonic", lambda: now[0])
    course = Course(total=5, ended=2)
    folders = [Path(name) for name in "abc"]
    course.ask(dict.fromkeys(folders, ("", 1000.0)))
    assert course.started([(folders[0], 1000, 0.5)]) == "3 of 5", "no pace yet; half of it was there"
    now[0] = 60.0
    course.advanced(1.0)  # 500 samples in a minute; 2000 are left
    assert course.started([(folders[1], 1000, 0.0), (folders[2], 1000, 0.0)]) == "4 to 5 of 5, 4 min left"

    search = Course(total=0, ended=0)
    search.said, search.further, search.at_most = "2 of 9 trials over", 700.0, True
    search.ask(dict.fromkeys(folders, ("", 100.0)))  # up to a tenth of each
    search.started([(folder, 1000, 0.0) for folder in folders])
    now[0] = 120.0
    search.advanced(0.1)
    search.ask({folders[0]: ("", 200.0)})
    assert search.started([(folders[0], 1000, 0.1)]) == "2 of 9 trials over, at most 3 min left", "900 samples, after 300 in a minute"


@pytest.mark.parametrize(
    ("seconds", "words"), [(3, "3 s"), (600, "10 min"), (11400, "3 h 10 min"), (7199, "2 h"), (190800, "2 d 5 h"), (3599, "1 h")]
)
def test_times_are_read_as_one_says_them(seconds: float, words: str) -> None:
    assert in_words(seconds) == words


def test_status_counts_what_is_done_running_failed_and_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = ("algorithm=localsgd", "K=2", "rounds=4")
    write_run(tmp_path, *local)
    write_run(tmp_path, *local, "optimizer.lr=9", status="diverged")
    failed = write_run(tmp_path, *local, "seed=1", status="unfinished")
    (failed / "error.txt").touch()
    running = write_run(tmp_path, *local, "seed=2", status="unfinished")
    write_run(tmp_path, *local, "seed=3", status="unfinished")
    join_section("mine", tmp_path / "digits" / "localsgd" / "K2-J8-B64-s4-0123456789", tmp_path)
    with owned(running, lambda line: None):
        found = standing("mine", section_runs("mine", tmp_path))
    counts = (found.finished, found.diverged, found.failed, len(found.running), len(found.stopped), found.to_do)
    assert counts == (1, 1, 1, 1, 1, 1)
    budget = 4 * 2 * 8 * 64
    assert found.running == [128 / budget], "as its rows say"
    assert found.runs == 6
    assert ask(monkeypatch, tmp_path, "status") == 0


# Which runs there are


def test_filters_and_orders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for J, lr, acc in ((4, 0.1, 0.5), (8, 0.1, 0.9), (8, 0.01, 0.7)):
        write_run(tmp_path, "algorithm=localsgd", "K=2", f"J={J}", f"optimizer.lr={lr}", acc=acc)
    write_run(tmp_path, "algorithm=slowmo", "K=2", "J=8", status="unfinished")
    runs = listed(tmp_path)

    def found(*words: str, order: tuple[str, ...] = ("val/acc",)) -> list[tuple[Any, ...]]:
        return [(each.facts["algorithm"], each.facts["J"], each.facts["optimizer.lr"]) for each in chosen(runs, words, order)]

    assert found("algorithm=localsgd", "J=8") == [("localsgd", 8, 0.01), ("localsgd", 8, 0.1)]
    assert found("J=4,8", "status=finished", order=("-val/acc",))[0] == ("localsgd", 8, 0.1)
    assert found("optimizer.lr<=0.01", "algorithm!=slowmo") == [("localsgd", 8, 0.01)]
    assert found("val/acc>0.6") == [("localsgd", 8, 0.01), ("localsgd", 8, 0.1)], "and not the one without"
    assert found("section=mine", order=("-val/acc",))[-1][0] == "slowmo", "what has none comes last"
    assert tells_apart(chosen(runs, ["algorithm=localsgd"])) == ["optimizer.lr", "J"]
    assert ask(monkeypatch, tmp_path, "list", "algorithm=localsgd", "--sort=-val/acc") == 0
    shown = capsys.readouterr().out
    assert "optimizer.lr" in shown and shown.index("90.00") < shown.index("70.00") < shown.index("50.00")


@pytest.mark.parametrize("wrong", ["K", "optimizer.lr<much", "val/acc<0.1,0.2", "optimizer.lR=1", "lr<1"])
def test_a_filter_that_is_none_is_one_line(
    wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path, "algorithm=localsgd", "K=2", "rounds=2")
    assert ask(monkeypatch, tmp_path, "list", wrong) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {wrong.split('=')[0].split('<')[0]}") and error.count("\n") == 1


def test_conditions_compare_numbers_as_numbers() -> None:
    assert Condition.of("optimizer.lr=1e-1").holds({"optimizer.lr": 0.1})
    assert Condition.of("N_c=null").holds({"N_c": None})
    assert not Condition.of("test=false").holds({"test": True})
    assert not Condition.of("K<4").holds({"K": None})


def test_runs_are_found_by_name_hash_and_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = (write_run(tmp_path, "algorithm=localsgd", "K=2", "rounds=2", f"seed={seed}") for seed in (1, 2))
    assert one.name[:-10] != other.name[:-10]
    for word in (one.name, one.name[-10:], one.name[-10:-4], str(one), str(one / "metrics.jsonl")):
        assert find_run(word, tmp_path) == one, word
    monkeypatch.chdir(tmp_path)
    assert find_run(one.relative_to(tmp_path).as_posix(), tmp_path) == one
    for wrong in ("nothing", "0000", "K2-J8-B64", "./nowhere", one.name[-10:-7]):
        with pytest.raises(UserError, match=re.escape(wrong)):
            find_run(wrong, tmp_path)


def test_comparing_shows_what_differs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    one = write_run(tmp_path, "algorithm=localsgd", "K=2", "rounds=2", acc=0.5)
    other = write_run(tmp_path, "algorithm=localsgd", "K=2", "rounds=2", "optimizer.lr=0.5", acc=0.75)
    assert ask(monkeypatch, tmp_path, "compare", one.name, other.name) == 0
    shown = capsys.readouterr().out
    assert "1 keys differ" in shown or "1 key differs" in shown
    assert "optimizer.lr" in shown and "val/acc" in shown and "0.25" in shown
    drawn = [Path(line.removeprefix("wrote ")) for line in shown.splitlines() if line.startswith("wrote ")]
    assert drawn and all(path.is_file() and one.name[-10:] in path.name and other.name[-10:] in path.name for path in drawn)
    assert ask(monkeypatch, tmp_path, "show", one.name) == 0
    assert "sections" in capsys.readouterr().out
    assert ask(monkeypatch, tmp_path, "compare", one.name, one.name) == 2


def test_what_there_is_of_unfinished_runs_is_drawn_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one = write_run(tmp_path, "algorithm=localsgd", "K=2", "rounds=2", acc=0.5)
    other = write_run(tmp_path, "algorithm=localsgd", "K=2", "rounds=2", "optimizer.lr=0.5", acc=0.75)
    (other / "summary.json").unlink()
    with (other / "metrics.jsonl").open("a") as file:
        file.write('{"samples": 12')  # a row that is being written
    assert ask(monkeypatch, tmp_path, "compare", one.name, other.name) == 0
    shown = capsys.readouterr().out
    assert "no picture" not in shown and f"{other.name}: unfinished; its curve ends there" in shown
    assert all(Path(line.removeprefix("wrote ")).is_file() for line in shown.splitlines() if line.startswith("wrote "))


# Taking away


def test_removing_leaves_sections_consistent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = (write_run(tmp_path, "algorithm=localsgd", "K=2", "rounds=2", f"seed={seed}") for seed in (1, 2))
    join_section("theirs", one, tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO("y"))
    assert ask(monkeypatch, tmp_path, "remove", one.name) == 2, "nobody can be asked"
    with owned(one, lambda line: None):
        process = subprocess.run(
            [sys.executable, "-m", "fl_hydra.runs", "remove", one.name, "--yes", "--outputs", str(tmp_path)],
            cwd=PROJECT,
            capture_output=True,
            text=True,
            check=False,
        )
    assert process.returncode == 2 and "is being written by" in process.stderr
    assert one.exists()
    assert ask(monkeypatch, tmp_path, "remove", one.name, "--yes") == 0
    assert not one.exists() and other.exists()
    assert section_runs("mine", tmp_path) == [other]
    assert sections(tmp_path) == ["mine"], "theirs had no other"


def test_a_section_is_renamed_and_emptied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path, "algorithm=localsgd", "K=2", "rounds=2")
    join_section("taken", run, tmp_path)
    assert ask(monkeypatch, tmp_path, "section", "rename", "mine", "taken") == 2
    assert ask(monkeypatch, tmp_path, "section", "rename", "mine", "a/b") == 2
    assert ask(monkeypatch, tmp_path, "section", "rename", "nothing", "new") == 2
    assert ask(monkeypatch, tmp_path, "section", "rename", "mine", "ours") == 0
    assert section_runs("ours", tmp_path) == [run]
    assert ask(monkeypatch, tmp_path, "section", "empty", "ours") == 0
    assert sections(tmp_path) == ["taken"]
    assert run.exists()


# What is typed is shown as a shell takes it


@pytest.mark.parametrize(
    ("override", "typed"),
    [
        ("optimizer.lr=tag(log,interval(1e-3,1))", "'optimizer.lr=tag(log,interval(1e-3,1))'"),
        ("K=2", "K=2"),
        ("algorithm.momentum='keep'", "algorithm.momentum=keep"),
        ("section='a b'", "'section=a b'"),
        ("tune.seeds=[100,101]", "'tune.seeds=[100,101]'"),
    ],
)
def test_overrides_are_shown_as_they_are_typed(override: str, typed: str) -> None:
    assert as_typed(override) == typed
    if "momentum" in override:
        assert as_text(typed) == override


def test_nothing_of_this_needs_torch(tmp_path: Path) -> None:
    write_run(tmp_path, "algorithm=localsgd", "K=2", "rounds=2")
    (tmp_path / "studies" / "empty").mkdir(parents=True)
    code = (
        "import sys; from fl_hydra.runs.__main__ import _main\n"
        f"for words in (['status'], ['list'], ['show', 'K2']): sys.argv = ['runs', '--outputs', {str(tmp_path)!r}, *words]; _main()\n"
        "assert 'torch' not in sys.modules and 'wandb' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
