"""What lies in a run's folder is not trusted by its name: copies, damage, odd files, failing writes, changes while a run is written."""

from __future__ import annotations

import builtins
import errno
import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch

from fl_hydra import files
from fl_hydra.config import Config
from fl_hydra.files import CorruptFile, read_verified, write_verified
from fl_hydra.runs import checkpoint as checkpoint_module
from fl_hydra.runs import folder as folder_module
from fl_hydra.runs.execution import execute, execute_together
from fl_hydra.runs.folder import BESIDE, METRICS, SEAL, read_ended
from fl_hydra.runs.outcome import Outcome
from fl_hydra.runs.ownership import locked
from fl_hydra.training.trainer import Trainer
from tests.support.make import config

TINY = ("model.filters=1", "model.hidden=2", "batch_size=16", "evaluation.points=4", "checkpoint.seconds=0", "engine=stacked", "threads=1")
LOCALSGD = ("algorithm=localsgd", "K=3", "J=4", "optimizer=adamw", "rounds=6", *TINY)
"""Whose workers keep state."""
FEDAVG = ("algorithm=fedavg", "K=10", "C=0.3", "J=2", "rounds=6", *TINY)


class Notes:
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.rounds: list[int] = []

    def started(self, runs: Sequence[tuple[Any, Path, int, float]]) -> None:
        self.rounds += [round for _, _, round, _ in runs]

    def advanced(self, round: int, done: float) -> None: ...
    def evaluated(self, rows: Sequence[Any]) -> None: ...
    def ended(self) -> None: ...

    def warn(self, message: str) -> None:
        assert "\n" not in message
        self.lines.append(message)

    def __str__(self) -> str:
        return "\n".join(self.lines)


class Killed(BaseException):
    """The process ends here."""


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "PAUSES", (0.0, 0.0, 0.0))


@pytest.fixture
def settings(tmp_path: Path) -> Callable[..., Config]:
    return lambda *overrides: replace(composed(*overrides), outputs=str(tmp_path / "outputs"))


composed = lru_cache(config)


def run(setting: Config, killed_after: int | None = None) -> tuple[Outcome | None, Notes]:
    """A run to its end, or until it is killed after some rounds."""
    notes, original = Notes(), Trainer.run_round

    def counted(self: Trainer) -> None:
        if self.runs[0].round == killed_after:
            raise Killed
        original(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "run_round", counted)
        try:
            outcome = execute(setting, notes)
        except Killed:
            return None, notes
    assert killed_after is None, outcome
    return outcome, notes


def folder_of(setting: Config) -> Path:
    (found,) = Path(setting.outputs).glob("*/*/*/config.yaml")
    return found.parent


def result(folder: Path) -> tuple[str, bytes]:
    """What must not differ: the final weights and every row, which agree with the summary."""
    ended = read_ended(folder)
    assert ended is not None and ended.summary["status"] == "finished"
    newest = max((folder / "checkpoints").glob("round-*.pt"))
    weights = read_verified(newest)["trainer"]["state"]["model"].numpy().tobytes()
    assert hashlib.sha256(weights).hexdigest() == ended.summary["weights_sha256"]
    return ended.summary["weights_sha256"], (folder / METRICS).read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[tuple[str, ...], tuple[str, bytes], Path]:
    """A command, what it comes to undisturbed, and its finished folder."""
    outputs = tmp_path_factory.mktemp("whole")
    setting = config(*LOCALSGD, f"outputs={outputs}")
    outcome, notes = run(setting)
    assert outcome is not None and outcome.status == "finished" and not notes.lines
    return LOCALSGD, result(folder_of(setting)), folder_of(setting)


def copied(whole: Path, setting: Config) -> Path:
    """The finished folder, where `setting` looks for it."""
    target = Path(setting.outputs) / whole.relative_to(whole.parents[2])
    shutil.copytree(whole, target)
    return target


# Whose it is (9)


def test_a_folder_copied_to_another_runs_name_is_refused(whole: Any, settings: Any) -> None:
    command, _, source = whole
    longer = settings(*command, "rounds=12")
    execute(longer, Notes())
    target = folder_of(longer)
    shutil.rmtree(target)
    for part in ("all of it", "checkpoints"):
        shutil.copytree(source, target)
        if part == "checkpoints":
            (target / "summary.json").unlink()
        before = {path: path.read_bytes() for path in target.rglob("*") if path.is_file() and path.name != ".lock"}
        outcome, _ = run(longer)
        assert outcome is not None and outcome.status == "failed"
        held = json.loads((source / "summary.json").read_text())
        assert f"holds another run, {held['run']} (budget={held['config']['budget']} where this run has" in outcome.reason
        assert "a run of its own" in outcome.reason and "move this folder away" in outcome.reason
        assert {path: path.read_bytes() for path in target.rglob("*") if path.is_file() and path.name != ".lock"} == before
        shutil.rmtree(target)


def test_client_state_of_another_training_is_not_taken_for_its_own(settings: Any) -> None:
    """Of the same run even, at another learning rate of life: sound files with the right names and the wrong content."""
    setting = settings(*LOCALSGD)
    run(setting)
    folder = folder_of(setting)
    expected = result(folder)
    (folder / "summary.json").unlink()
    run(settings(*LOCALSGD, "seed=5"))
    (other,) = (path for path in folder.parent.iterdir() if path != folder)
    for path in (other / "checkpoints" / "clients").glob("*-5.pt"):
        shutil.copy(path, folder / "checkpoints" / "clients" / path.name)
    _, notes = run(setting)
    assert "not the file that belongs here" in str(notes) and "falling back to the one before" in str(notes)
    assert result(folder) == expected


# Metrics and ended runs (10)


def flipped(content: bytes) -> bytes:
    at = random.Random(len(content)).randrange(len(content))
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "flipped": flipped,
    "shorter": lambda content: content[:-7],
    "a row less": lambda content: b"".join(content.splitlines(keepends=True)[:-1]),
    "a row twice": lambda content: content + content.splitlines(keepends=True)[-1],
    "empty": lambda content: b"",
    "zeros": lambda content: bytes(len(content)),
    "another figure": lambda content: content.replace(b"1", b"2", 3),
}


@pytest.mark.parametrize(
    ("state", "damage"),
    [(state, damage) for state in ("finished", "unfinished") for damage in DAMAGES] + [("without checkpoints", "flipped")],
)
def test_damaged_metrics_are_noticed_and_made_again(damage: str, state: str, whole: Any, settings: Any) -> None:
    command, expected, source = whole
    setting = settings(*command)
    if state == "unfinished":
        run(setting, killed_after=4)
        folder = folder_of(setting)
    else:
        folder = copied(source, setting)
        if state == "without checkpoints":
            shutil.rmtree(folder / "checkpoints")
    metrics = folder / METRICS
    metrics.write_bytes(DAMAGES[damage](metrics.read_bytes()))
    _, notes = run(setting)
    assert result(folder) == expected
    if (state, damage) != ("unfinished", "a row twice"):  # what comes after the checkpoint's rows is cut off in any case
        assert METRICS in str(notes)
    assert notes.rounds == {"finished": [], "without checkpoints": [0], "unfinished": [4]}[state]
    assert not run(setting)[1].lines, "once is enough"


def replaced(key: str, value: Any) -> Callable[[bytes], bytes]:
    return lambda content: json.dumps({**json.loads(content), key: value}).encode()


SUMMARIES: dict[str, Callable[[bytes], bytes]] = {
    **{name: DAMAGES[name] for name in ("flipped", "shorter", "empty")},
    "status": replaced("status", "diverged"),
    "weights": replaced("weights_sha256", "0" * 64),
    "metrics": replaced("metrics", {"round": 1, "test/acc": 0.99}),
    "seal": replaced(SEAL, "0" * 64),
    "without its seal": lambda content: json.dumps({k: v for k, v in json.loads(content).items() if k != SEAL}).encode(),
    "a list": lambda content: b"[]",
    "nested": lambda content: b"[" * 100000,
}


@pytest.mark.parametrize("damage", SUMMARIES)
def test_a_damaged_summary_is_noticed_and_made_again(damage: str, whole: Any, settings: Any) -> None:
    command, expected, source = whole
    setting = settings(*command)
    folder = copied(source, setting)
    summary = folder / "summary.json"
    summary.write_bytes(SUMMARIES[damage]((source / "summary.json").read_bytes()))
    with pytest.raises(CorruptFile, match=r"summary\.json"):
        read_ended(folder)
    outcome, notes = run(setting)
    assert outcome is not None and outcome.status == "finished"
    assert "this run had ended, but summary.json" in str(notes) and not notes.rounds
    assert result(folder) == expected
    assert {**json.loads(summary.read_text()), "beside_sha256": 0, SEAL: 0} == {
        **json.loads((source / "summary.json").read_text()),
        "beside_sha256": 0,
        SEAL: 0,
    }


def test_a_summary_of_an_earlier_version_is_found(whole: Any, settings: Any) -> None:
    command, _, source = whole
    setting = settings(*command)
    summary = copied(source, setting) / "summary.json"
    old = {key: value for key, value in json.loads(summary.read_text()).items() if key not in (SEAL, "format")}
    summary.write_text(json.dumps(old))
    outcome, notes = run(setting)
    assert outcome is not None and (outcome.status, outcome.trained) == ("finished", False) and not notes.lines
    summary.write_text(json.dumps({**old, "status": "diverged"}))
    assert "does not say what metrics.jsonl says" in str(run(setting)[1])


def test_a_diverged_run_whose_summary_is_lost_has_diverged_at_the_same_round(settings: Any) -> None:
    setting = settings("algorithm=fedavg", "K=10", "C=0.5", "J=20", "rounds=40", "optimizer.momentum=0.9", "optimizer.lr=1e6", *TINY)
    first, _ = run(setting)
    assert first is not None and first.status == "diverged"
    rows = (first.folder / METRICS).read_bytes()
    (first.folder / "summary.json").unlink()
    again, _ = run(setting)
    assert again is not None and (again.status, again.reason) == (first.status, first.reason)
    assert (first.folder / METRICS).read_bytes() == rows


@pytest.mark.parametrize("name", BESIDE)
def test_a_folder_in_place_of_a_file_for_the_reader_is_named_and_changes_nothing(name: str, whole: Any, settings: Any) -> None:
    command, expected, original = whole
    setting = settings(*command)
    folder = copied(original, setting)
    (folder / name).unlink()
    (folder / name).mkdir()
    for _ in range(2):
        outcome, notes = run(setting)
        assert outcome is not None and not outcome.trained and result(folder) == expected
        (line,) = notes.lines
        assert f"move {name}, which is a folder, away" in line


@pytest.mark.parametrize("name", BESIDE)
def test_files_for_the_reader_of_a_finished_run_are_rebuilt(name: str, whole: Any, settings: Any) -> None:
    command, expected, source = whole
    setting = settings(*command)
    folder = copied(source, setting)
    for damage in ("flipped", "missing"):
        path = folder / name
        path.write_bytes(flipped(path.read_bytes())) if damage == "flipped" else path.unlink()
        outcome, notes = run(setting)
        assert outcome is not None and outcome.status == "finished"
        assert f"{name} is damaged or missing" in str(notes) and not notes.rounds
        assert name == "config.yaml" or path.read_bytes() == (source / name).read_bytes()
        assert not run(setting)[1].lines
    assert result(folder) == expected
    shutil.rmtree(folder / "checkpoints")
    (folder / name).unlink()
    outcome, notes = run(setting)
    assert outcome is not None and (outcome.status, outcome.trained) == ("finished", False) and "changes no result" in str(notes)


def test_a_torn_row_of_timings_is_mended_on_resume(settings: Any) -> None:
    setting = settings(*FEDAVG)
    run(setting, killed_after=4)
    path = folder_of(setting) / "timings.jsonl"
    rounds = [row["round"] for row in folder_module.rows_of(path.read_bytes())]
    path.write_bytes(path.read_bytes() + b'{"round": 5, "sam')
    run(setting)
    metrics = folder_module.rows_of((path.parent / METRICS).read_bytes())
    found = [row["round"] for row in folder_module.rows_of(path.read_bytes())]
    assert found[: len(rounds)] == rounds and found == [row["round"] for row in metrics]


# Removed or changed while it is written (11)


def remove_all(folder: Path) -> None:
    shutil.rmtree(folder)


def make_anew(folder: Path) -> None:
    shutil.rmtree(folder)
    (folder / "checkpoints").mkdir(parents=True)


def remove_owner(folder: Path) -> None:
    (folder / ".owner").unlink()
    (folder / ".lock").unlink()


def meanwhile(monkeypatch: pytest.MonkeyPatch, setting: Config, what: Callable[[Path], Any], after: int = 3) -> None:
    original = Trainer.run_round

    def disturbed(self: Trainer) -> None:
        original(self)
        if self.runs[0].round == after:
            what(folder_of(setting))

    monkeypatch.setattr(Trainer, "run_round", disturbed)


@pytest.mark.parametrize("what", [remove_all, make_anew, remove_owner])
def test_a_run_whose_folder_is_taken_away_fails_and_writes_no_more(
    what: Any, whole: Any, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    command, expected, _ = whole
    setting = settings(*command)
    seen: list[list[Path]] = []

    def disturb(folder: Path) -> None:
        what(folder)
        seen.append(sorted(folder.rglob("*")))
        seen[0].append(folder)

    meanwhile(monkeypatch, setting, disturb)
    outcome, _ = run(setting)
    monkeypatch.undo()
    assert outcome is not None and outcome.status == "failed" and ".owner was removed" in outcome.reason
    assert sorted(outcome.folder.rglob("*")) == seen[0][:-1]
    again, _ = run(setting)
    assert again is not None and again.status == "finished" and result(again.folder) == expected


@pytest.mark.parametrize(
    "change",
    [Path.unlink, lambda path: path.write_bytes(path.read_bytes() + b"{}\n"), lambda path: path.write_bytes(flipped(path.read_bytes()))],
)
@pytest.mark.parametrize("after", [3, 5])
def test_metrics_that_are_changed_while_the_run_is_written_are_written_again(
    change: Any, after: int, whole: Any, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    command, expected, _ = whole
    setting = settings(*command)
    meanwhile(monkeypatch, setting, lambda folder: change(folder / METRICS), after)
    outcome, notes = run(setting)
    assert outcome is not None and outcome.status == "finished" and result(outcome.folder) == expected
    assert "was changed or removed while the run was being written" in str(notes)


def test_checkpoints_that_are_removed_while_the_run_is_written_are_made_again(
    whole: Any, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    command, expected, _ = whole
    setting = settings(*command)
    meanwhile(monkeypatch, setting, lambda folder: shutil.rmtree(folder / "checkpoints"))
    outcome, _ = run(setting)
    assert outcome is not None and outcome.status == "finished" and result(outcome.folder) == expected


def test_training_from_zero_is_never_silent(whole: Any, settings: Any) -> None:
    """Where rows of metrics tell that there was something to go on from."""
    command, expected, _ = whole
    setting = settings(*command)
    run(setting, killed_after=4)
    shutil.rmtree(folder_of(setting) / "checkpoints")
    outcome, notes = run(setting)
    assert "there are rows of metrics and no checkpoint to go on from; training begins again" in str(notes)
    assert outcome is not None and result(outcome.folder) == expected


def test_a_file_in_place_of_the_checkpoints_is_named_until_it_is_moved(whole: Any, settings: Any) -> None:
    command, expected, _ = whole
    setting = settings(*command)
    run(setting, killed_after=4)
    checkpoints = folder_of(setting) / "checkpoints"
    shutil.rmtree(checkpoints)
    checkpoints.write_text("")
    for _ in range(2):
        outcome, _ = run(setting)
        assert outcome is not None and outcome.status == "failed"
        assert outcome.reason.startswith(f"no folder where one should be: {checkpoints}; move it away")
    checkpoints.unlink()
    outcome, _ = run(setting)
    assert outcome is not None and result(outcome.folder) == expected


# Conditions (5, 12)


def test_conditions_come_from_the_checkpoint_whatever_becomes_of_the_environment(settings: Any) -> None:
    auto = [word for word in LOCALSGD if not word.startswith("engine=")]
    begun = settings(*auto, "engine=im2col")
    run(begun, killed_after=2)
    folder = folder_of(begun)
    path = folder / "environment.json"
    first = json.loads(path.read_text())
    for damage in (path.unlink, lambda: path.write_text('{"engine": "loop", "threads": 3}'), lambda: path.write_text("[]")):
        damage()
        _, notes = run(settings(*auto), killed_after=3)
        assert not notes.lines
        assert json.loads(path.read_text())["engine"] == "im2col"
    assert json.loads(path.read_text()) == first
    conditions = read_verified(max((folder / "checkpoints").glob("round-*.pt")))["conditions"]
    assert conditions.keys() == {"engine", "threads", "rows_at_once", "samples_at_once", "device", "torch"}


def test_members_begun_under_different_conditions_are_trained_in_groups(settings: Any, tmp_path: Path) -> None:
    auto = [word for word in LOCALSGD if not word.startswith("engine=")]
    expected = {}
    for seed, engine in enumerate(["loop", "im2col", "loop"]):
        run(settings(*auto, f"seed={seed}", f"engine={engine}"))
        (folder,) = Path(settings(*auto).outputs).glob("*/*/*")
        expected[folder.name] = result(folder)
        shutil.rmtree(folder)
    for seed, engine in enumerate(["loop", "im2col", "loop"]):
        run(settings(*auto, f"seed={seed}", f"engine={engine}"), killed_after=1 + seed)
    notes = Notes()
    outcomes = execute_together([settings(*auto, f"seed={seed}") for seed in range(4)], notes)  # one of them is begun here
    assert [outcome.status for outcome in outcomes] == ["finished"] * 4
    assert not notes.lines
    assert sorted(notes.rounds) == [0, 1, 2, 3]
    for outcome in outcomes[:3]:
        assert result(outcome.folder)[0] == expected[outcome.folder.name][0]


def test_a_run_begun_on_a_gpu_goes_on_without_one_alone_and_in_a_pack(settings: Any) -> None:
    auto = [word for word in LOCALSGD if not word.startswith("engine=")]
    for seed in range(2):
        run(settings(*auto, f"seed={seed}"), killed_after=2)
    for path in Path(settings(*auto).outputs).rglob("round-*.pt"):
        content = read_verified(path)
        content["conditions"].update(engine="graph", device="a GPU")
        write_verified(path, content)
    notes = Notes()
    outcomes = execute_together([settings(*auto, f"seed={seed}") for seed in range(3)], notes)
    assert [outcome.status for outcome in outcomes] == ["finished"] * 3
    assert "begun with engine=graph and goes on with " in str(notes) and "begun with device=a GPU" in str(notes)


# Checkpoints that cannot be used (17)


def without(name: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        content = read_verified(path)
        target = content if name in content else content["trainer"]
        del target[name]
        write_verified(path, content)

    return damage


def with_value(value: Any, *names: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        content = read_verified(path)
        target = content
        for name in names[:-1]:
            target = target[name]
        target[names[-1]] = value
        write_verified(path, content)

    return damage


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "inside").write_text("")


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def an_older_one(path: Path) -> None:
    shutil.copy(min(path.parent.glob("round-*.pt")), path)


UNUSABLE = {
    **{f"without {name}": without(name) for name in ("run", "conditions", "metrics", "state", "clients", "cursors")},
    "format": with_value(99, "format"),
    "no engine": with_value("warp", "conditions", "engine"),
    "model": with_value(torch.zeros(1), "trainer", "state", "model"),
    "a state more": with_value({"model": torch.zeros(3), "server": 1}, "trainer", "state"),
    "traffic": with_value({}, "trainer", "traffic"),
    "cursors of others": with_value(torch.zeros(99, dtype=torch.int64), "trainer", "cursors"),
    "clients of others": with_value({99: (1, "0" * 16)}, "trainer", "clients"),
    "memory": with_value(3, "trainer", "memory"),
    "rows": with_value("{torn", "metrics"),
    "a list": lambda path: write_verified(path, [1, 2]) and None,
    "a folder": a_folder,
    "a pipe": a_pipe,
    "an older one": an_older_one,
}


@pytest.mark.parametrize("damage", UNUSABLE)
def test_a_sealed_checkpoint_that_cannot_be_used_falls_back_to_the_one_before(damage: str, settings: Any, whole: Any) -> None:
    command, expected, _ = whole
    setting = settings(*command)
    run(setting, killed_after=4)
    folder = folder_of(setting)
    UNUSABLE[damage](folder / "checkpoints" / "round-000000004.pt")
    _, notes = run(setting)
    assert "falling back to the one before" in str(notes)
    assert notes.rounds == [3]
    assert result(folder) == expected
    assert not list(folder.rglob("*.damaged")), "nothing is left behind when it has ended"


def test_a_restore_that_fails_half_way_leaves_nothing(whole: Any, settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    command, expected, _ = whole
    setting = settings(*command)
    run(setting, killed_after=4)
    original, failures = Trainer.restore, []

    def fails(self: Trainer, content: dict[str, Any], run: int = 0) -> None:
        original(self, content, run)
        if content["round"] > 0:
            failures.append(content["round"])
            raise KeyError("something")

    monkeypatch.setattr(Trainer, "restore", fails)
    _, notes = run(setting)
    assert failures == [4, 3] and notes.rounds == [0]
    assert "there is none before it" in str(notes)
    assert result(folder_of(setting)) == expected


def test_what_cannot_be_read_now_is_not_given_up(whole: Any, settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    command, expected, _ = whole
    setting = settings(*command)
    run(setting, killed_after=4)
    original = builtins.open

    def flaky(file: Any, *args: Any, **kwargs: Any) -> Any:
        if str(file).endswith(".pt"):
            raise OSError(errno.EIO, "Input/output error", str(file))
        return original(file, *args, **kwargs)

    monkeypatch.setattr(builtins, "open", flaky)
    outcome, _ = run(setting)
    monkeypatch.undo()
    assert outcome is not None and outcome.status == "failed" and "the last checkpoint is kept" in outcome.reason
    _, notes = run(setting)
    assert notes.rounds == [4] and not notes.lines
    assert result(folder_of(setting)) == expected


# Writes that fail (15)


def failing(monkeypatch: pytest.MonkeyPatch, number: int, name: str, times: int, call: str = "fsync") -> list[str]:
    """`call` fails so many times on files whose name contains `name`; the paths that it failed on."""
    failed: list[str] = []
    original = getattr(os, call)

    def fails(descriptor: Any, *args: Any) -> Any:
        path = os.readlink(f"/proc/self/fd/{descriptor}") if isinstance(descriptor, int) else str(descriptor)
        if name in path and len(failed) < times and not os.path.isdir(path):
            failed.append(path)
            raise OSError(number, os.strerror(number), path)
        return original(descriptor, *args)

    monkeypatch.setattr(os, call, fails)
    return failed


PASSING = [("fsync", errno.EIO, name) for name in ("round-000000002", METRICS, "clients", "timings", ".owner")]
PASSING += [("replace", errno.ESTALE, name) for name in ("round-000000002", "summary", "environment", "config.yaml", ".owner")]


@pytest.mark.parametrize(("call", "number", "name"), PASSING)
def test_what_fails_in_passing_ends_no_run(call: str, number: int, name: str, settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = settings(*LOCALSGD, "rounds=3")
    with monkeypatch.context() as patch:
        failed = failing(patch, number, name, 2, call)
        outcome, _ = run(setting)
    assert outcome is not None and outcome.status == "finished"
    assert len(set(failed)) == len(failed), "a file that failed is never synced or renamed again"
    result(outcome.folder)
    assert not list(outcome.folder.rglob("*.tmp"))


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_before_a_run_is_given_up_what_is_in_memory_is_saved(
    number: int, whole: Any, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    command, expected, _ = whole
    setting = settings(*command, "checkpoint.seconds=999")
    with monkeypatch.context() as patch:
        failing(patch, number, METRICS, 10**6)
        outcome, _ = run(setting)
    assert outcome is not None and outcome.status == "failed" and os.strerror(number) in outcome.reason
    _, notes = run(setting)
    assert notes.rounds == [2], "the round after which the first row was due"
    assert result(folder_of(setting)) == expected


def test_files_for_the_reader_end_no_run(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = settings(*LOCALSGD)
    original = builtins.open

    def full(file: Any, *args: Any, **kwargs: Any) -> Any:
        if any(name in str(file) for name in ("timings", "environment")):
            raise OSError(errno.ENOSPC, "No space left on device", str(file))
        return original(file, *args, **kwargs)

    monkeypatch.setattr(builtins, "open", full)
    outcome, notes = run(setting)
    assert outcome is not None and outcome.status == "finished"
    assert len(notes.lines) == 1 and "goes on without it" in notes.lines[0]


# Odd files (13)


def put_folder(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.mkdir()
    (path / "inside").write_text("")


def put_pipe(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    os.mkfifo(path)


ODD = [(put_folder, name) for name in ("summary.json", METRICS, "config.yaml", ".lock", "error.txt")]
ODD += [(put_pipe, name) for name in ("summary.json", METRICS, "timings.jsonl", ".owner")]


@pytest.mark.parametrize(("put", "name"), ODD)
def test_odd_files_end_at_most_their_run_and_block_nothing(put: Any, name: str, settings: Any) -> None:
    setting, other = settings(*FEDAVG), settings(*FEDAVG, "seed=1")
    run(setting, killed_after=4)
    folder = folder_of(setting)
    put(folder / name)
    outcomes = execute_together([setting, other], Notes())
    assert outcomes[1].status == "finished"
    if outcomes[0].status == "finished":
        result(outcomes[0].folder)
        assert not (folder / name).is_fifo()
    else:
        assert outcomes[0].status == "failed" and name in outcomes[0].reason and "\n" not in outcomes[0].reason


def test_a_list_of_a_section_that_is_held_is_not_waited_for_for_ever(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from fl_hydra.errors import UserError

    monkeypatch.setattr(folder_module, "SECTION_SECONDS", 0.3)
    setting = settings(*FEDAVG, "section=mine")
    sections = Path(setting.outputs) / "sections"
    sections.mkdir(parents=True)
    notes = Notes()
    with locked(sections / "mine.lock", 0, notes.warn), pytest.raises(UserError, match="section=mine: another process has held"):
        execute(setting, notes)
    assert "waiting for another process that holds" in str(notes)
    assert run(setting)[0] is not None


# Litter (19)


def test_one_damaged_checkpoint_is_kept_until_the_run_has_ended(settings: Any) -> None:
    setting = settings(*FEDAVG)
    for killed_after in (2, 3, 4):
        run(setting, killed_after=killed_after)
        newest = max((folder_of(setting) / "checkpoints").glob("round-*.pt"))
        newest.write_bytes(flipped(newest.read_bytes()))
    run(setting, killed_after=5)
    assert len(list(folder_of(setting).rglob("*.damaged"))) == checkpoint_module.SET_ASIDE_KEPT
    run(setting)
    assert not list(folder_of(setting).rglob("*.damaged"))
