"""How far a run has come, how fast it went and how much it holds, as its files say; without torch."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from fl_hydra.files import read_file
from fl_hydra.runs.checkpoint import Checkpoints
from fl_hydra.runs.folder import METRICS, TIMINGS
from fl_hydra.runs.ownership import OWNER, STALE, writer

Row = dict[str, Any]


def rows(path: Path) -> list[Row]:
    """The rows of metrics.jsonl or timings.jsonl that can be read; the last one may be half written."""
    found = []
    with suppress(OSError):
        for line in read_file(path).splitlines():
            with suppress(ValueError, TypeError):
                found.append(dict(json.loads(line)))
    return found


def resumed_round(folder: Path) -> int:
    """The round that a run would continue from: that of its newest checkpoint, 0 without one."""
    with suppress(OSError):
        return max(Checkpoints(folder / "checkpoints").rounds(), default=0)
    return 0


def part_kept(folder: Path, config: Mapping[str, Any]) -> float:
    """The part of its budget, from 0 to 1, that a run has done at its newest checkpoint.

    Checkpoints are named by their rounds; how many samples a round has is told by the rows of metrics, or by K, J and the batch size.

    Args:
        config: the resolved configuration, as :func:`fl_hydra.runs.identity.describe` gives it.
    """
    round = resumed_round(folder)
    passed = [row for row in rows(folder / METRICS) if row.get("round") and row["round"] <= round]
    if passed:
        samples = passed[-1]["samples"] / passed[-1]["round"] * round
    else:
        samples = round * config["m"] * (config["J"] or 0) * config["batch_size"]
    return float(min(1.0, samples / config["budget"]))


def part_seen(folder: Path, config: Mapping[str, Any]) -> float:
    """As :func:`part_kept`, of a run that is being trained: its last row may be newer than its checkpoint."""
    last = max((row.get("samples") or 0 for row in rows(folder / METRICS)), default=0)
    return float(max(part_kept(folder, config), min(1.0, last / config["budget"])))


def seconds_spent(folder: Path) -> float:
    """Seconds that a run took up to its last row, its share of those that it spent beside others."""
    spent = before = 0.0
    for row in rows(folder / TIMINGS):
        spent += max(0.0, row["seconds"] - before) / row.get("together", 1)
        before = row["seconds"]
    return spent


def seconds_per_sample(folder: Path) -> float | None:
    """How long a sample took, evaluations and checkpoints included; None where no row tells it."""
    timed = rows(folder / TIMINGS)
    return seconds_spent(folder) / timed[-1]["samples"] if timed and timed[-1].get("samples") else None


def size(folder: Path) -> int:
    """Bytes of a folder's files."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += (Path(parent) / name).lstat().st_size
    return total


def is_written(folder: Path) -> bool:
    """Whether a process seems to write a run now. Of one that cannot be seen from here, its sign of life is not older than a minute."""
    _, gone = writer(folder)
    if gone is not None:
        return not gone
    with suppress(OSError):
        return time.time() - (folder / OWNER).stat().st_mtime < STALE
    return False


def in_words(seconds: float) -> str:
    """A time to read: `40 s`, `12 min`, `3 h 10 min`, `2 d 5 h`."""
    if seconds < 90:
        return f"{round(seconds)} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{hours // 24} d {hours % 24} h"


def in_bytes(count: float) -> str:
    """An amount to read: `3.2 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
