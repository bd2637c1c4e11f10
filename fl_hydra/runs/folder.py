"""The files of a run.

`config.yaml`, `metrics.jsonl` (a row for each evaluation), `timings.jsonl`, `environment.json`, `clients.json` (what each client holds,
where there are several), `summary.json` (written last: a run that has it has ended), `checkpoints/` and, after a failure, `error.txt`.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fl_hydra.files import (
    PASSING,
    CorruptFile,
    OddFile,
    make_folder,
    open_file,
    read_file,
    remove_leftovers,
    write_atomically,
)
from fl_hydra.runs.ownership import Ownership, owned

SUMMARY, METRICS = "summary.json", "metrics.jsonl"
TIMINGS, ENVIRONMENT, CONFIG, CLIENTS = BESIDE = "timings.jsonl", "environment.json", "config.yaml", "clients.json"
"""For information only; rebuilt from a checkpoint."""


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
    """The losses of a row that are not finite: the run has diverged."""
    losses = ("train/loss", "val/loss", "test/loss", "personal/val/loss", "personal/test/loss")
    return [name for name in losses if row.get(name) is None and row.get(name[:-4] + "acc") is not None]


class RunFolder:
    """One run's directory. All writes go through it, and only while this process owns it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self._ownership: Ownership | None = None

    @contextmanager
    def owned(self, notify: Callable[[str], None]) -> Iterator[None]:
        """Become the only process that writes the run.

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
            OwnershipLost: the folder does not belong to this process any more.
        """
        if self._ownership is not None:
            self._ownership.check()

    @property
    def lost(self) -> bool:
        """Whether the loss of the folder to another process was noticed."""
        return self._ownership is not None and bool(self._ownership.lost)

    def write(self, name: str, content: bytes) -> None:
        """Write a file whole.

        Raises:
            OwnershipLost, OSError: it was not written.
        """
        self.check()
        write_atomically(self.path / name, content)


class RowsFile:
    """metrics.jsonl or timings.jsonl. Its content is also kept in memory, which takes precedence.

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
        """Whether the last write was correct."""

    def restore(self, content: bytes) -> None:
        """Go back to what a checkpoint holds. Rows that were appended after it will be produced again."""
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
        """Append a row. If that fails temporarily, or the file was changed, it is rewritten as a whole.

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
        """Verify the file before a summary vouches for it."""
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


def run_folders(outputs: Path) -> list[Path]:
    """Every folder with files of a run, by name."""
    parts = (SUMMARY, METRICS, CONFIG, "checkpoints")
    return sorted({path.parent for part in parts for path in outputs.glob(f"*/*/*/{part}")})
