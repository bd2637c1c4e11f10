"""Files that are written whole or not at all, and tensors on the disk that are verified when they are read.

A file of tensors is one line with the SHA-256 of what follows, and what follows is written by `torch.save`; so a torn,
truncated or bit-flipped file is always noticed.
"""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path
from typing import Any

MAGIC = b"fl_hydra 1 sha256 "


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` to `path` so that, whenever the process or the machine dies, `path` is the old file or the new one.

    The bytes go to a temporary name in the same folder, are flushed to the disk, and the name is changed.

    Raises:
        OSError: the disk is full, or the folder cannot be written; `path` is untouched and no temporary file stays.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
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
    """Delete temporary files that a killed writer left in `folder`. Only for the process that holds the folder's lock."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


class CorruptFile(Exception):
    """A checkpoint that cannot be used; the text says why."""


def write_verified(path: Path, content: Any) -> None:
    """Write tensors and plain values to `path`, whole or not at all, with their digest.

    Raises:
        OSError: the disk is full or the folder cannot be written.
    """
    import torch

    buffer = io.BytesIO()
    torch.save(content, buffer)
    payload = buffer.getbuffer()
    header = MAGIC + hashlib.sha256(payload).hexdigest().encode() + b"\n"
    write_atomically(path, header + payload)


def read_verified(path: Path) -> Any:
    """What :func:`write_verified` wrote, with tensors on the CPU.

    Raises:
        CorruptFile: missing, truncated or changed since it was written.
        OSError: it cannot be read now, which says nothing about what it holds.
    """
    import torch

    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise CorruptFile(f"{path.name} is missing") from error
    header, _, payload = data.partition(b"\n")
    if not header.startswith(MAGIC) or header[len(MAGIC) :] != hashlib.sha256(payload).hexdigest().encode():
        raise CorruptFile(f"{path.name} is truncated or corrupted")
    return torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
