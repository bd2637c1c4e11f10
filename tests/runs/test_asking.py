"""What a user asks: how far it is, which runs there are, how they differ; and taking some away."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fl_hydra.errors import UserError
from fl_hydra.runs.course import Course
from fl_hydra.runs.finding import find_run
from fl_hydra.runs.listing import Condition, chosen, listed, tells_apart
from fl_hydra.runs.ownership import owned
from fl_hydra.runs.sections import join_section, section_runs, sections
from fl_hydra.runs.standing import in_words
from fl_hydra.runs.status import standing
from tests.conftest import Program
from tests.support.asking import GRID, ask
from tests.support.make import PROJECT
from tests.support.reports import write_run


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
