"""Files that are written whole or not at all, and tensors on the disk that are verified when they are read.

A file of tensors is one line with the SHA-256 of what follows, and what follows is written by `torch.save`; so a torn,
truncated or bit-flipped file is always noticed.

What fails temporarily, as on network drives, is tried again; a file is then written anew as a whole, since `fsync` of a file whose first
`fsync` has failed may say that all is well when it is not.
"""

from __future__ import annotations

import errno
import hashlib
import io
import itertools
import os
import re
import shutil
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeVar

from fl_hydra.processes import is_gone, machine

MAGIC = b"fl_hydra 1 sha256 "

PAUSES = (0.1, 0.4, 1.5)
"""Seconds before what has failed in passing is tried again."""

PASSING = frozenset(
    {errno.EIO, errno.ESTALE, errno.EAGAIN, errno.EINTR, errno.EBUSY, errno.EPIPE, errno.ENOLINK, errno.ENOTCONN, errno.ETIMEDOUT}
    | {errno.ECONNRESET, errno.ECONNABORTED, errno.ECONNREFUSED, errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH}
    | {getattr(errno, "EREMOTEIO", errno.EIO)}
)
"""Failures that may be over in a moment. A full disk, or a folder that may not be written, is none."""

FORGOTTEN = 24 * 3600.0
"""Seconds without a change after which a temporary file of a process that cannot be seen from here is nobody's."""

TEMPORARY = f".*.{'[0-9a-f]' * 8}-*-*.tmp"
"""Names as :func:`temporary_name` gives them, and nobody else."""

_T = TypeVar("_T")
_count = itertools.count()


def again(action: Callable[[], _T]) -> _T:
    """What `action` returns; it is tried again, after a pause, while it fails in passing.

    Raises:
        OSError: it failed for good, or once too often.
    """
    for pause in PAUSES:
        try:
            return action()
        except OSError as error:
            if error.errno not in PASSING:
                raise
        time.sleep(pause)
    return action()


class OddFile(OSError):
    """Something else lies where a file should be: a folder, a pipe, a device; or where a folder should be."""


def make_folder(path: Path) -> None:
    """Make a folder, if there is none, with those that it lies in.

    Raises:
        OddFile: something else lies there.
        OSError: it cannot be made.
    """
    try:
        again(partial(path.mkdir, parents=True, exist_ok=True))
    except FileExistsError as error:
        raise OddFile(errno.ENOTDIR, "no folder where one should be", error.filename) from error


def open_file(path: Path, mode: str) -> IO[bytes]:
    """Open a regular file; never waits for the other end of a pipe.

    Raises:
        OddFile: it is something else.
        OSError: it cannot be opened.
    """

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)

    try:
        kind = os.stat(path).st_mode
        if not stat.S_ISREG(kind):
            what = "a folder" if stat.S_ISDIR(kind) else "no regular file"
            raise OddFile(errno.EINVAL, f"{what} where a file should be", str(path))
    except FileNotFoundError:
        pass  # it may be made
    return open(path, mode, opener=opener)


def read_file(path: Path) -> bytes:
    """All of a regular file; tried again if that fails in passing.

    Raises:
        OddFile: it is something else.
        OSError: it cannot be read.
    """

    def read() -> bytes:
        with open_file(path, "rb") as file:
            return file.read()

    return again(read)


def temporary_name(path: Path) -> Path:
    """Where a process writes what will become `path`: a new name each time, which identifies the process."""
    return path.with_name(f".{path.name}.{machine()}-{os.getpid()}-{next(_count)}.tmp")


def write_atomically(path: Path, content: bytes | Callable[[IO[bytes]], object]) -> None:
    """Write `content` to `path` so that, whenever the process or the machine dies, `path` is the old file or the new one.

    What is too large to be in memory twice is a function that writes it to the file that it is given.

    The bytes go to a temporary name in the same folder, are flushed to the disk, and the name is changed. What fails in passing is
    tried again from the start.

    Raises:
        OSError: the disk is full, or the folder cannot be written; `path` is untouched and no temporary file stays.
    """

    def write() -> None:
        temporary = temporary_name(path)
        try:
            with open(temporary, "wb") as file:
                content(file) if callable(content) else file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException as error:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            if isinstance(error, OSError):  # told as of the file that was wanted
                error.filename, error.filename2 = str(path), None
            raise

    again(write)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames and new names in `folder` last, where the file system can do that."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass  # some network and FUSE file systems refuse to sync a folder
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files that killed writers left in `folder`. Only for the process that owns the folder."""
    for path in folder.glob(".*.tmp"):
        with suppress(OSError):
            path.unlink()


def remove_abandoned(folder: Path, pattern: str = TEMPORARY) -> None:
    """Delete what killed processes left in a folder that many may write.

    Only what is certainly nobody's: a process wrote it that could be seen from here and is not there, or it is older than a day.

    Args:
        folder: where to look.
        pattern: of names that only this program gives.
    """
    for path in folder.glob(pattern):
        with suppress(OSError):
            owner = re.search(r"([0-9a-f]{8})-(\d+)-[^-]*$", path.name)
            gone = owner is not None and is_gone(owner[1], int(owner[2]))
            if gone or time.time() - path.lstat().st_mtime > FORGOTTEN:
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()


class CorruptFile(Exception):
    """A file that cannot be used; the text says why."""


def write_verified(path: Path, content: Any) -> str:
    """Write tensors and plain values to `path`, whole or not at all, with their digest, which is returned: 64 hex digits.

    Raises:
        OSError: the disk is full or the folder cannot be written.
    """
    import torch

    buffer = io.BytesIO()
    torch.save(content, buffer)
    payload = buffer.getbuffer()
    digest = hashlib.sha256(payload).hexdigest()
    write_atomically(path, MAGIC + digest.encode() + b"\n" + payload)
    return digest


def read_verified(path: Path, digest: str | None = None) -> Any:
    """What :func:`write_verified` wrote, with tensors on the CPU.

    Args:
        path: of the file.
        digest: the beginning of the one that it must have; None: any that is its own.

    Raises:
        CorruptFile: missing, no file, truncated, changed since it was written, or sound and another one.
        OSError: it cannot be read now, which says nothing about what it holds.
    """
    import torch

    try:
        data = read_file(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CorruptFile(f"{path.name} is missing") from error
    except OddFile as error:
        raise CorruptFile(f"{path.name} is {error.strerror}") from error
    header, _, payload = data.partition(b"\n")
    own = hashlib.sha256(payload).hexdigest()
    if not header.startswith(MAGIC) or header[len(MAGIC) :] != own.encode():
        raise CorruptFile(f"{path.name} is truncated or corrupted")
    if digest is not None and not own.startswith(digest):
        raise CorruptFile(f"{path.name} is sound, but not the file that belongs here")
    try:
        return torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:
        raise CorruptFile(f"{path.name} holds something else ({type(error).__name__})") from error
