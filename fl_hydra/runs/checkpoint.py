"""Checkpoints that are verified when they are read.

A file is one line with the SHA-256 of what follows, and what follows is written by `torch.save`; so a torn, truncated or
bit-flipped file is always noticed. The last two checkpoints of a run are kept.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fl_hydra.files import write_atomically

MAGIC = b"fl_hydra 1 sha256 "
KEPT = 2


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
    """
    import torch

    try:
        data = path.read_bytes()
    except OSError as error:
        raise CorruptFile(f"{path.name}: {error.strerror}") from error
    header, _, payload = data.partition(b"\n")
    if not header.startswith(MAGIC) or header[len(MAGIC) :] != hashlib.sha256(payload).hexdigest().encode():
        raise CorruptFile(f"{path.name} is truncated or corrupted")
    return torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)


class Checkpoints:
    """The checkpoints of one run, named by round."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def rounds(self) -> list[int]:
        """Rounds after which there is a checkpoint, newest first."""
        return sorted((int(path.stem.split("-")[1]) for path in self.folder.glob("round-*.pt")), reverse=True)

    def path(self, round: int) -> Path:
        """The file of the checkpoint after `round` rounds."""
        return self.folder / f"round-{round:09d}.pt"

    def save(self, round: int, content: dict[str, Any]) -> list[int]:
        """Write a checkpoint, then delete all but the last two; the rounds that are kept."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_verified(self.path(round), content)
        rounds = self.rounds()
        for old in rounds[KEPT:]:
            self.path(old).unlink(missing_ok=True)
        return rounds[:KEPT]

    def restore(self, use: Callable[[dict[str, Any]], None], warn: Callable[[str], None]) -> bool:
        """Hand the newest sound checkpoint to `use`; damaged ones are named, deleted and passed over.

        Args:
            use: takes a checkpoint's content; raises CorruptFile if something that it refers to is damaged.
            warn: is told about each damaged checkpoint.

        Returns:
            Whether there was a sound one.
        """
        for round in self.rounds():
            try:
                use(read_verified(self.path(round)))
                return True
            except CorruptFile as error:
                warn(f"checkpoint after round {round} cannot be used ({error}); falling back to the one before it")
                self.path(round).unlink(missing_ok=True)
        return False
