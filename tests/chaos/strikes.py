"""What is done to runs within their process: kills, signals, calls that fail."""

from __future__ import annotations

import random
import signal
import subprocess
from collections.abc import Sequence

from tests.chaos.damage import NotHere
from tests.chaos.judge import Verdict, rude
from tests.chaos.stage import Stage
from tests.chaos.watch import Strike

WRITING = ("open", "write", "append", "fsync", "replace", "unlink", "truncate", "mkdir", "flock")


def pick(stage: Stage, calls: Sequence[str], settings: int, part: float = 1.0, start_up: bool = False) -> tuple[str, str, int]:
    """A sort of call and a kind of file that the setting has, which take turns, and which of its calls."""
    counts = stage.reference.counts
    pairs = sorted(pair for pair in counts if pair[0] in calls and (start_up or pair[1] != "start-up"))
    random.Random(f"{stage.event.seed} {stage.setting.name}").shuffle(pairs)
    pair = pairs[stage.event.turn // settings % len(pairs)]
    return *pair, stage.rng.randint(1, max(1, round(counts[pair] * part)))


def kill(stage: Stage) -> None:
    settings = stage.settings
    call, file, n = pick(stage, WRITING, settings)
    stage.give(Strike(call, file, n, stage.rng.choice(["kill", "kill", "kill after"])))


def kill_again_and_again(stage: Stage) -> None:
    for _ in range(stage.rng.randint(2, 5)):
        counts = stage.reference.counts
        pair = stage.rng.choice(sorted(pair for pair in counts if pair[0] in WRITING and pair[1] != "start-up"))
        n = stage.rng.randint(1, max(1, counts[pair] // 2))
        if stage.give(Strike(*pair, n, stage.rng.choice(["kill", "kill after"]))).status == stage.reference.status:
            break
    stage.struck = True  # later ones need not


def regroup(stage: Stage) -> None:
    """Members of a killed pack go on alone or in packs of two, are killed there, and come back together."""
    call, file, n = pick(stage, WRITING, stage.settings)
    if stage.rng.random() < 0.8:
        stage.give(Strike(call, file, n, "kill"))
    for _ in range(stage.rng.randint(1, 2)):
        strikes = [Strike("replace", "checkpoint", stage.rng.randint(1, 6), "kill")] if stage.rng.random() < 0.5 else []
        point = stage.rng.choice(stage.setting.points)
        some = (stage.setting.alone(point, stage.outputs), stage.setting.command(stage.outputs, "hydra.launcher.runs=2"))
        words = stage.rng.choice(some)
        stage.what.append(" ".join(point) if words is some[0] else "two at a time")
        stage.give(*strikes, words=words)
    stage.struck = True


def signalled(stage: Stage) -> None:
    call, file, n = pick(stage, (*WRITING, "read"), stage.settings, start_up=True)
    action, number = (("SIGTERM", signal.SIGTERM), ("3 SIGINT", signal.SIGINT))[stage.event.turn % 2]
    ended = stage.give(Strike(call, file, n, action))
    if ended.struck and ended.status not in (stage.reference.status, 128 + number) and not rude(ended):
        stage.wrong.append((Verdict.RUDE, f"exit status {ended.status} after {number.name}: {ended.output.strip()}"))


ERRORS = ("EIO", "ENOSPC", "ESTALE", "EACCES", "EDQUOT", "EROFS")
FAILING = tuple(call for call in WRITING if call != "flock")


def _fails(stage: Stage, lasting: bool) -> None:
    name = ERRORS[stage.event.turn % len(ERRORS)]
    if stage.rng.random() < 0.25:  # reading, where a run goes on
        stage.state("half")
        file = stage.rng.choice(["checkpoint", "client state", "metrics", "environment", "config", "summary", "lock"])
        stage.give(Strike("read", file, stage.rng.randint(1, 2), name, lasting))
        stage.struck = True  # not all of these are read
    else:
        call, file, n = pick(stage, FAILING, stage.settings)
        stage.give(Strike(call, file, n, name, lasting))


def fails_once(stage: Stage) -> None:
    _fails(stage, lasting=False)


def fails_for_ever(stage: Stage) -> None:
    _fails(stage, lasting=True)


def without_flock(stage: Stage) -> None:
    """A file system without flock: a run ends all the same, killed in between or not."""
    name = ("ENOSYS", "EOPNOTSUPP", "ENOLCK")[stage.event.turn % 3]
    strike = Strike("flock", "file", 1, name, lasting=True)
    if stage.rng.random() < 0.5:
        call, file, n = pick(stage, FAILING, stage.settings)
        stage.give(strike, Strike(call, file, n, "kill"))
    ended = stage.give(strike)
    if ended.status != stage.reference.status:
        stage.wrong.append((Verdict.STUCK, f"nothing runs without flock: {ended.output.strip()}"))
    if ended.status not in (0, 1, 2) and not ended.hung:
        stage.wrong.append((Verdict.RUDE, f"exit status {ended.status}"))


def full_disk(stage: Stage) -> None:
    """A real file system that is too small."""
    disk = stage.folder / "disk"
    disk.mkdir(parents=True)
    pages = stage.reference.bytes // 4096
    size = stage.rng.randint(8, pages + pages // 3)
    stage.what.append(f"{size} pages of 4 KiB, where it needs about {pages}")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size * 4}k", "tmpfs", str(disk)], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        raise NotHere("a file system of a given size cannot be mounted here")
    stage.outputs = disk / "outputs"
    stage.give()
    stage.harmed.append(stage.ended[-1])
    subprocess.run(["mount", "-o", "remount,size=256m", str(disk)], check=True)
