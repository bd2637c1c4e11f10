"""Runs that cannot be lost: kills, signals, damage, full disks."""

from __future__ import annotations

import errno
import random
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fl_hydra.files import CorruptFile, read_verified, write_atomically, write_verified
from fl_hydra.resolving import resolve
from fl_hydra.training.client_files import file_of
from fl_hydra.training.trainer import Trainer
from tests.conftest import Program
from tests.support.kills import FEDAVG, LOCALSGD, SMALL, digests, half_done, run_folder
from tests.support.kinds import SHIPPED, kinds
from tests.support.make import PROJECT, config, experiment, suited
from tests.support.small import finish


@pytest.fixture(scope="module", params=[LOCALSGD, FEDAVG], ids=["localsgd", "fedavg"])
def whole(
    request: pytest.FixtureRequest, program: Program, tmp_path_factory: pytest.TempPathFactory
) -> tuple[tuple[str, ...], tuple[str, str]]:
    """A command, and the digests of its run when nothing disturbs it."""
    folder = tmp_path_factory.mktemp("whole")
    result = program(*request.param, cwd=folder)
    assert result.status == 0, result.output
    return request.param, digests(run_folder(folder))


def kills() -> Iterator[tuple[str, float]]:
    """Seeded moments of death: inside writing, renaming and appending, between rounds, and anywhere at all."""
    rng = random.Random(7)
    for kind, count, high in (("write", 3, 40), ("replace", 2, 40), ("renamed", 2, 40), ("append", 3, 25), ("round", 2, 25)):
        for _ in range(count):
            yield kind, rng.randint(3, high)
    for _ in range(3):
        yield "seconds", round(rng.uniform(0.02, 0.6), 3)


@pytest.mark.parametrize(("kind", "n"), list(kills()))
def test_a_killed_run_ends_as_one_never_killed(
    kind: str, n: float, whole: tuple[tuple[str, ...], tuple[str, str]], program: Program, tmp_path: Path
) -> None:
    command, expected = whole
    killed = program(*command, cwd=tmp_path, kill={"kind": kind, "n": n})
    assert killed.status == -signal.SIGKILL, killed.output
    again = program(*command, cwd=tmp_path)
    assert again.status == 0, again.output
    assert digests(run_folder(tmp_path)) == expected
    assert not list(tmp_path.rglob("*.tmp")), "a leftover of the killed process"


METHODS = [f"algorithm={name}" for name in SHIPPED]
RULES = [f"local_steps={path.stem}" for path in sorted((PROJECT / "conf" / "local_steps").glob("*.yaml"))]
OPTIMIZERS = [f"optimizer={name}" for name in ("lars", "lamb", "radam")]
"""Those of their own, and one of torch's whose step depends on its count."""
SERVERS = [f"server={path.stem}" for path in sorted((PROJECT / "conf" / "server").glob("*.yaml"))]

SCHEME = "participation=oort"
"""One that keeps state of clients."""


def seven_rounds(choice: str) -> list[str]:
    """A command of seven rounds, of which the last is cut, with an option of conf."""
    command = [*([] if choice in METHODS else ["algorithm=fedavg"] if choice == SCHEME else ["algorithm=localsgd"]), choice, *SMALL]
    command += ["participation.dropout=0.2", "speeds=linear"] if choice == SCHEME else []
    command += ["local_steps.spread=0.4"] if choice in RULES else []
    method = config(*command[:1]).algorithm
    command = list(suited(method.name, *command))
    command += [] if method.J is None else ["J=3"]
    command += ["K=10", "C=0.3"] if choice == SCHEME or (choice in METHODS and method.federated) else []
    return [*command, f"samples={int(6.4 * (resolve(config(*command)).round_samples or 4 * 3 * 16))}"]


@pytest.mark.parametrize("choice", [*METHODS, *RULES, *OPTIMIZERS, *SERVERS, SCHEME])
def test_everything_goes_on_exactly_from_its_files(choice: str, tmp_path: Path) -> None:
    """Interrupted twice, each time after a round that no checkpoint has, whatever is in conf ends as if nothing had happened.

    Within this process: what differs when a process really dies is the same for all methods of a kind, whose runs the next test kills.
    """
    e = experiment(*seven_rounds(choice))
    whole = finish(Trainer(e, client_folders=[tmp_path / "whole"]))
    for begun, part in ((False, 0.2), (True, 0.6), (True, 1)):
        run = Trainer(e, client_folders=[tmp_path / "clients"])
        if begun:
            run.restore(read_verified(tmp_path / "checkpoint.pt"))
        assert begun == (0 < run.sole_run.samples < e.budget)
        while run.sole_run.samples < part * e.budget:
            run.run_round()
        if not run.finished:
            write_verified(tmp_path / "checkpoint.pt", run.checkpoint())
            run.run_round()
    assert run.finished
    for key, tensor in whole.state.tensors().items():
        assert torch.equal(run.state.tensors()[key], tensor), key
    assert run.evaluate() == whole.evaluate()


@pytest.mark.parametrize("choice", [*(f"algorithm={name}" for name in kinds()), "server=adam", SCHEME])
def test_every_kind_of_method_survives_a_kill(choice: str, program: Program, tmp_path: Path) -> None:
    """Killed after three rounds, and again in the middle of writing."""
    command = seven_rounds(choice)
    for folder in ("whole", "killed"):
        (tmp_path / folder).mkdir()
    whole = program(*command, cwd=tmp_path / "whole")
    assert whole.status == 0, whole.output
    for kill in ({"kind": "round", "n": 3}, {"kind": "write", "n": 5}):
        killed = program(*command, cwd=tmp_path / "killed", kill=kill)
        assert killed.status == -signal.SIGKILL, killed.output
    again = program(*command, cwd=tmp_path / "killed")
    assert again.status == 0, again.output
    assert "resumed at round" in again.output
    assert digests(run_folder(tmp_path / "killed")) == digests(run_folder(tmp_path / "whole"))


def test_killed_again_and_again(whole: tuple[tuple[str, ...], tuple[str, str]], program: Program, tmp_path: Path) -> None:
    command, expected = whole
    rng = random.Random(3)
    deaths = 0
    for _ in range(100):
        kind = rng.choice(["write", "replace", "renamed", "append", "round"])
        if program(*command, cwd=tmp_path, kill={"kind": kind, "n": rng.randint(5, 30)}).status == 0:
            break
        deaths += 1
    assert deaths >= 2
    assert digests(run_folder(tmp_path)) == expected


def test_a_finished_run_answers_at_once(program: Program, tmp_path: Path) -> None:
    first = program("epochs=2", cwd=tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    second = program("epochs=2", cwd=tmp_path)
    assert (first.status, second.status) == (0, 0)
    assert "finished before" in second.output
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_says_how_to_go_on_and_loses_nothing(
    number: int, whole: tuple[tuple[str, ...], tuple[str, str]], program: Program, tmp_path: Path
) -> None:
    command, expected = whole
    # No checkpoint would be due: what is saved is saved because of the signal.
    rare = [*command[:-1], "checkpoint.seconds=9999"] if command is LOCALSGD else [*command, "checkpoint.seconds=9999"]
    stopped = program(*rare, cwd=tmp_path, asks=[number, 3])
    assert stopped.status == 128 + number
    assert "run the same command again" in stopped.output
    assert "python train.py threads=1 outputs=outputs algorithm=" in stopped.output
    again = program(*command, cwd=tmp_path)
    assert "resumed at round 4" in again.output
    assert digests(run_folder(tmp_path)) == expected


def damage_torn(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))


def damage_truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def damage_flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)


def damage_emptied(path: Path) -> None:
    path.write_bytes(b"")


DAMAGES = [damage_torn, damage_truncated, damage_flipped, damage_emptied]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("which", ["checkpoint", "client state"])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(damage, which: str, program: Program, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    folder = half_done(program, tmp_path)
    newest = max((folder / "checkpoints").glob("round-*.pt"))
    if which == "client state":
        clients = read_verified(newest)["trainer"]["clients"]
        damage(folder / "checkpoints" / "clients" / file_of(1, clients[1]))
    else:
        damage(newest)
    again = program(*LOCALSGD, cwd=tmp_path)
    assert again.status == 0, again.output
    assert "cannot be used" in again.output
    assert "falling back to the one before" in again.output
    reference = tmp_path / "reference"
    reference.mkdir()
    program(*LOCALSGD, cwd=reference)
    assert digests(folder) == digests(run_folder(reference))


def test_all_checkpoints_damaged_starts_again_and_says_so(program: Program, tmp_path: Path) -> None:
    folder = half_done(program, tmp_path)
    for path in (folder / "checkpoints").glob("round-*.pt"):
        damage_flipped(path)
    again = program(*LOCALSGD, cwd=tmp_path)
    assert again.status == 0
    assert again.output.count("cannot be used") == 2
    assert "resumed" not in again.output


def test_damaged_client_state_of_every_checkpoint_leaves_nothing_behind(
    whole: tuple[tuple[str, ...], tuple[str, str]], program: Program, tmp_path: Path
) -> None:
    command, expected = whole
    program(*command, cwd=tmp_path, kill={"kind": "round", "n": 12})
    folder = run_folder(tmp_path)
    for path in [*(folder / "checkpoints").glob("clients/*.rows")] or (folder / "checkpoints").glob("round-*.pt"):
        damage_flipped(path)
    (folder / "checkpoints" / "round-000000001 (1).pt").write_bytes(b"a copy that a synchronised drive made")
    (folder / "environment.json").write_text("[]")
    again = program(*command, cwd=tmp_path)
    assert again.status == 0, again.output
    assert "resumed" not in again.output
    assert digests(folder) == expected


def test_two_checkpoints_are_kept_and_client_files_are_collected(program: Program, tmp_path: Path) -> None:
    program(*LOCALSGD, cwd=tmp_path)
    checkpoints = run_folder(tmp_path) / "checkpoints"
    assert len(list(checkpoints.glob("round-*.pt"))) == 2
    assert len(list((checkpoints / "clients").iterdir())) == 2, "one for all clients of a checkpoint"


def test_a_full_disk_is_one_line_and_loses_nothing(
    whole: tuple[tuple[str, ...], tuple[str, str]], program: Program, tmp_path: Path
) -> None:
    """A real ENOSPC: the outputs lie on a file system that is too small for the second checkpoint."""
    command, expected = whole
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=340k", "tmpfs", str(small)], capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"a file system of a given size cannot be mounted here: {mounted.stderr.strip()}")
    try:
        ballast = small / "ballast"
        ballast.write_bytes(bytes(170_000 if command is LOCALSGD else 260_000))
        full = program(*command, f"outputs={small}/outputs", cwd=tmp_path)
        assert full.status == 1, full.output
        assert "No space left on device" in full.output
        assert "make room, then run the same command again" in full.output
        assert "Traceback" not in full.output
        assert not list(small.rglob("*.tmp"))
        ballast.unlink()
        subprocess.run(["mount", "-o", "remount,size=64m", str(small)], check=True)
        again = program(*command, f"outputs={small}/outputs", cwd=tmp_path)
        assert again.status == 0, again.output
        assert digests(run_folder(small)) == expected
    finally:
        subprocess.run(["umount", str(small)], check=False)


def test_atomic_write_leaves_the_old_file_when_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_verified_files_notice_damage(damage, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    import torch

    path = tmp_path / "file.pt"
    write_verified(path, {"tensor": torch.arange(1000)})
    assert read_verified(path)["tensor"].sum() == 499500
    damage(path)
    with pytest.raises(CorruptFile, match="truncated or corrupted"):
        read_verified(path)


def test_a_broken_pipe_does_not_end_a_run(tmp_path: Path) -> None:
    import sys

    from tests.support.make import PROJECT

    command = f"{sys.executable} {PROJECT / 'train.py'} epochs=20 threads=1 outputs=outputs 2>&1 | head -n 1"
    subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, timeout=60, check=False)
    assert (run_folder(tmp_path) / "summary.json").exists()
