"""The files of a run.

`config.yaml`, `metrics.jsonl` (a row for each evaluation), `timings.jsonl`, `environment.json`, `clients.json` (what each client holds,
where there are several), `summary.json` (written last: a run that has it has ended), `checkpoints/` and, after a failure, `error.txt`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_hydra.errors import UserError, require
from fl_hydra.files import (
    PASSING,
    CorruptFile,
    OddFile,
    make_folder,
    open_file,
    read_file,
    remove_abandoned,
    remove_leftovers,
    write_atomically,
)
from fl_hydra.runs.ownership import Ownership, locked, owned

SUMMARY, METRICS = "summary.json", "metrics.jsonl"
TIMINGS, ENVIRONMENT, CONFIG, CLIENTS = BESIDE = "timings.jsonl", "environment.json", "config.yaml", "clients.json"
"""For the reader alone; rebuilt from a checkpoint."""
FORMAT = 2
"""Of summary.json, as its `format`; the first had none."""
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


def damaged_beside(folder: Path, ended: Ended) -> list[str]:
    """Of the files that are for the reader alone, those that are not what they were when the run had ended."""
    damaged = []
    for name, digest in ended.summary.get("beside_sha256", {}).items():
        try:
            content = read_file(folder / name)
        except OSError:
            content = b""
        if hashlib.sha256(content).hexdigest() != digest:
            damaged.append(name)
    return damaged


def seal(summary: dict[str, Any]) -> str:
    """The SHA-256 over a summary's other keys, 64 hex digits."""
    text = json.dumps({key: value for key, value in summary.items() if key != SEAL}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def as_json(content: dict[str, Any]) -> bytes:
    """What a JSON file holds."""
    return (json.dumps(content, indent=2) + "\n").encode()


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


class RunFolder:
    """One run's directory. What is written goes through it, and only while this process owns it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self._ownership: Ownership | None = None

    @contextmanager
    def owned(self, notify: Callable[[str], None]) -> Iterator[None]:
        """Be the only process that writes the run.

        Args:
            notify: is told, in one line, if another process has to be waited for.

        Raises:
            RunBusy: another process writes it.
            OSError: nothing can be written there.
        """
        make_folder(self.path)
        with owned(self.path, notify) as ownership:
            self._ownership = ownership
            try:
                make_folder(self.checkpoints)
                for folder in (self.path, self.checkpoints, self.checkpoints / "clients"):
                    remove_leftovers(folder)
                yield
            finally:
                if not ownership.lost:  # given back, which is no loss
                    self._ownership = None

    def check(self) -> None:
        """To be called before each write.

        Raises:
            OwnershipLost: the folder is not this process's any more.
        """
        if self._ownership is not None:
            self._ownership.check()

    @property
    def lost(self) -> bool:
        """Whether it was noticed that the folder is not this process's any more."""
        return self._ownership is not None and bool(self._ownership.lost)

    def write(self, name: str, content: bytes) -> None:
        """Write a file whole.

        Raises:
            OwnershipLost, OSError: it was not written.
        """
        self.check()
        write_atomically(self.path / name, content)


class RowsFile:
    """metrics.jsonl or timings.jsonl. What it holds is kept in memory too, and that is what counts.

    Args:
        folder: of the run.
        name: of the file.
        warn: is told if the file is not what it should be, and was written again.
    """

    def __init__(self, folder: RunFolder, name: str, warn: Callable[[str], None]) -> None:
        self.content = b""
        self._folder, self._name, self._warn = folder, name, warn
        self._path = folder.path / name
        self._sure = True
        """Whether the file was written as it should be when it was last written."""

    def restore(self, content: bytes) -> None:
        """Go back to what a checkpoint holds. Rows that were appended after it will come again."""
        self.content = content
        present = self._present()
        if present == content:
            return
        if not present.startswith(content):
            self._warn(f"{self._path} is not what the checkpoint holds; written again from there")
        self._write()

    @property
    def found(self) -> bool:
        """Whether the file holds anything now.

        Raises:
            OSError: it cannot be read.
        """
        return bool(self._present())

    def append(self, row: dict[str, Any]) -> None:
        """Append a row. If that fails in passing, or somebody has changed the file, it is written again as a whole.

        Raises:
            OwnershipLost, OSError: it was not written; a checkpoint that is still to be written will have the row.
        """
        before, sure = self.content, self._sure
        self.content += (line := row_line(row))
        self._sure = False
        self._folder.check()
        if self._present() == before:
            try:
                with open_file(self._path, "ab") as file:
                    file.write(line)
                    file.flush()
                    os.fsync(file.fileno())
                    if file.tell() == len(self.content):
                        self._sure = True
                        return
            except OSError as error:
                if error.errno not in PASSING:
                    raise
        elif sure:
            self._warn(f"{self._path} was changed or removed while the run was being written; written again")
        self._write()

    def settle(self) -> None:
        """See that the file is what it should be, before a summary vouches for it."""
        if self._present() != self.content:
            self._warn(f"{self._path} was changed or removed while the run was being written; written again")
            self._write()

    def _present(self) -> bytes:
        try:
            return read_file(self._path)
        except FileNotFoundError:
            return b""
        except OSError as error:
            if self._path.is_dir() or not (isinstance(error, OddFile) or error.errno == errno.ELOOP):
                raise
            return b""  # a pipe, a device or a link to itself, which is written over

    def _write(self) -> None:
        self._folder.write(self._name, self.content)
        self._sure = True


_RUN = re.compile(r"[^/\0\ufffd]+/[^/\0\ufffd]+/[^/\0\ufffd]+-[0-9a-f]{10}")
"""A run's folder below the outputs."""

SECTION_SECONDS = 10.0
"""How long a section's list is waited for, while another process holds it."""


def join_section(section: str, run: Path, outputs: Path, notify: Callable[[str], None] = lambda line: None) -> None:
    """Note that a section of the report asked for a run; sections that need the same run share it.

    Raises:
        UserError: nothing can be written there.
    """
    path = section_file(section, outputs)
    name = run.relative_to(outputs).as_posix()
    try:
        with section_locked(section, outputs, notify):
            # Without flock another process may write in between: what counts is that the name is there in the end.
            for _ in range(5):
                listed = _listed(path) if path.exists() else []
                names = list(dict.fromkeys(filter(_RUN.fullmatch, listed)))
                if len(names) < len(listed):
                    spoiled = f"{len(listed) - len(names)} of {len(listed)} lines"
                    notify(f"{path} is damaged: what names no run, or one twice, was taken out of the section's list ({spoiled})")
                elif name in names:
                    break
                remove_abandoned(path.parent)
                write_atomically(path, "\n".join([*names, *([] if name in names else [name]), ""]).encode())
    except OSError as error:
        raise UserError(
            f"section={section}: {path} cannot be written ({error.strerror or error}); mend that, or choose outputs="
        ) from error


def section_file(section: str, outputs: Path) -> Path:
    """Where a section's list of runs lies."""
    return outputs / "sections" / f"{section}.txt"


@contextmanager
def section_locked(section: str, outputs: Path, notify: Callable[[str], None] = lambda line: None) -> Iterator[None]:
    """Be the only one that changes a section's list.

    Raises:
        UserError: another process does not let go of it.
        OSError: nothing can be written there.
    """
    lock = section_file(section, outputs).with_suffix(".lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with locked(lock, SECTION_SECONDS, notify) as taken:
        require(
            taken,
            f"section={section}: another process has held {lock} for {SECTION_SECONDS:.0f} s; see which one is stopped or hangs, end it, "
            "and give the same command again",
        )
        yield


def leave_sections(run: Path, outputs: Path, notify: Callable[[str], None] = lambda line: None) -> list[str]:
    """Take a run out of every section's list; the sections that had it.

    Raises:
        UserError, OSError: a list cannot be changed.
    """
    name = run.relative_to(outputs).as_posix()
    left = []
    for path in sorted((outputs / "sections").glob("*.txt")):
        with section_locked(path.stem, outputs, notify):
            listed = _listed(path)
            if name not in listed:
                continue
            left.append(path.stem)
            if rest := [line for line in listed if line != name]:
                write_atomically(path, "\n".join([*rest, ""]).encode())
            else:
                path.unlink()
    return left


def run_folders(outputs: Path) -> list[Path]:
    """Every folder in which there is something of a run, by name."""
    parts = (SUMMARY, METRICS, CONFIG, "checkpoints")
    return sorted({path.parent for part in parts for path in outputs.glob(f"*/*/*/{part}")})


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
        UserError: there is no such section, or its list cannot be read.
    """
    path = section_file(section, outputs)
    require(path.exists(), f"no run was asked for with section={section} and outputs={outputs}: train with section={section} first")
    try:
        return [outputs / name for name in dict.fromkeys(_listed(path))]
    except OSError as error:
        raise UserError(f"section={section}: {path} cannot be read ({error.strerror or error}); mend that or remove it") from error


def _listed(path: Path) -> list[str]:
    """The lines of a section's list, which should each name a run."""
    return read_file(path).decode(errors="replace").splitlines()
