"""The files of a run.

`config.yaml`, `metrics.jsonl` (a row for each evaluation), `timings.jsonl`, `environment.json`, `summary.json` (written last:
a run that has it has ended), `checkpoints/` and, after a failure, `error.txt`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fl_hydra.errors import UserError, require
from fl_hydra.files import CorruptFile, read_file, remove_leftovers, write_atomically

SUMMARY, METRICS = "summary.json", "metrics.jsonl"
SEAL = "summary_sha256"
"""The key of summary.json for the SHA-256 over all others."""


@dataclass(frozen=True)
class Ended:
    """A run that has ended, as its files say, which agree with each other.

    summary: of summary.json: `status` (`finished` or `diverged`), `reason`, `run` (the run's hash), `metrics` (the last row), `config`
    and digests. rows: of metrics.jsonl.
    """

    summary: dict[str, Any]
    rows: list[dict[str, Any]]


def read_ended(folder: Path) -> Ended | None:
    """How a run has ended; None if it has not. Everything that can be verified without its weights is.

    Raises:
        CorruptFile: summary.json or metrics.jsonl is damaged, or they do not belong together; the text says which.
        OddFile: something else lies where one of them should be.
        OSError: one cannot be read now.
    """
    try:
        text = read_file(folder / SUMMARY)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        summary = json.loads(text)
        status, last, config, digest = (summary[key] for key in ("status", "metrics", "config", "metrics_sha256"))
        sealed = SEAL in summary or "format" in summary  # those of earlier versions were not
        sound = not sealed or summary[SEAL] == seal(summary)
        sound = sound and isinstance(config, dict) and isinstance(summary["run"], str) and status in ("finished", "diverged")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptFile(f"{SUMMARY} is damaged") from error
    if not sound:
        raise CorruptFile(f"{SUMMARY} is damaged")
    try:
        content = read_file(folder / METRICS)
    except FileNotFoundError as error:
        raise CorruptFile(f"{METRICS} is missing") from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise CorruptFile(f"{METRICS} is not what {SUMMARY} was written for")
    rows = rows_of(content)
    if not rows or rows[-1] != last or (status == "diverged") != bool(not_finite(last)):
        raise CorruptFile(f"{SUMMARY} does not say what {METRICS} says")
    return Ended(summary, rows)


def seal(summary: dict[str, Any]) -> str:
    """The SHA-256 over a summary's other keys, 64 hex digits."""
    text = json.dumps({key: value for key, value in summary.items() if key != SEAL}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def row_line(row: dict[str, Any]) -> bytes:
    """A row as a line of metrics.jsonl or timings.jsonl."""
    return (json.dumps(row, allow_nan=False) + "\n").encode()


def rows_of(content: bytes) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl.

    Raises:
        CorruptFile: one is damaged.
    """
    try:
        return [dict(json.loads(line)) for line in content.splitlines()]
    except (ValueError, TypeError, RecursionError) as error:
        raise CorruptFile(f"{METRICS} is damaged") from error


def not_finite(row: dict[str, Any]) -> list[str]:
    """The losses of a row that were no numbers any more: the run has diverged."""
    return [name for name in ("train/loss", "val/loss", "test/loss") if row.get(name) is None and row.get(name[:-4] + "acc") is not None]


class RunBusy(UserError):
    """Another process is writing this run."""


class RunFolder:
    """One run's directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics = path / "metrics.jsonl"
        self.timings = path / "timings.jsonl"
        self.checkpoints = path / "checkpoints"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run's lock, which the system releases when the process ends, however it ends.

        Raises:
            RunBusy: another process holds it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / ".lock", timeout=0)
        owner = self.path / ".owner"
        try:
            with lock:
                owner.write_text(f"process {os.getpid()} on {os.uname().nodename}")
                for folder in (self.path, self.checkpoints, self.checkpoints / "clients"):
                    remove_leftovers(folder)
                yield
        except Timeout as error:
            try:
                who = owner.read_text()
            except OSError:
                who = "another process"
            raise RunBusy(f"{self.path} is being written by {who}; wait for it, or stop it and run the same command again") from error

    def summary(self) -> dict[str, Any] | None:
        """The result of a finished run; None if it is not finished."""
        try:
            summary = json.loads((self.path / "summary.json").read_text())
            return dict(summary) if {"status", "metrics", "config"} <= set(summary) else None
        except (FileNotFoundError, NotADirectoryError, ValueError, TypeError):
            return None

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Write a JSON file whole."""
        write_atomically(self.path / name, (json.dumps(content, indent=2) + "\n").encode())

    def cut_metrics(self, length: int) -> None:
        """Cut metrics.jsonl back to the length in bytes that a checkpoint recorded.

        Raises:
            CorruptFile: it is shorter than that.
        """
        present = self.metrics.stat().st_size if self.metrics.exists() else 0
        if present < length:
            raise CorruptFile(f"{self.metrics.name} has {present} of the {length} bytes that it refers to")
        if present > length:
            os.truncate(self.metrics, length)

    def append(self, path: Path, row: dict[str, Any]) -> int:
        """Append a row to metrics.jsonl or timings.jsonl; the file's length after it, in bytes.

        Raises:
            OSError: the disk is full; what was appended in part is cut off on resume.
        """
        with open(path, "ab") as file:
            file.write((json.dumps(row, allow_nan=False) + "\n").encode())
            file.flush()
            os.fsync(file.fileno())
            return file.tell()

    def rows(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl."""
        if not self.metrics.exists():
            return []
        return [json.loads(line) for line in self.metrics.read_text().splitlines()]


def join_section(section: str, run: Path, outputs: Path) -> None:
    """Note that a section of the report asked for a run; sections that need the same run share it.

    Raises:
        UserError: nothing can be written there.
    """
    path = outputs / "sections" / f"{section}.txt"
    name = run.relative_to(outputs).as_posix()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            names = path.read_text().splitlines() if path.exists() else []
            if name not in names:
                write_atomically(path, "\n".join([*names, name, ""]).encode())
    except OSError as error:
        raise UserError(
            f"section={section}: {path} cannot be written ({error.strerror or error}); mend that, or choose outputs="
        ) from error


def sections(outputs: Path) -> list[str]:
    """Every section that runs were asked for with.

    Raises:
        UserError: there is none.
    """
    names = sorted(path.stem for path in (outputs / "sections").glob("*.txt"))
    require(bool(names), f"no run was asked for with section=NAME and outputs={outputs}: train some first")
    return names


def section_runs(section: str, outputs: Path) -> list[Path]:
    """The runs that a section asked for, in that order.

    Raises:
        UserError: there is no such section.
    """
    path = outputs / "sections" / f"{section}.txt"
    require(path.exists(), f"no run was asked for with section={section} and outputs={outputs}: train with section={section} first")
    return [outputs / name for name in path.read_text().splitlines()]
