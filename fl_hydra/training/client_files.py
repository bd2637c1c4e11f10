"""Immutable files of client state: rows of many clients one after the other, each with a digest of its own.

A file for each client would be flushed to the disk one by one, which takes milliseconds each, and for 100,000 of them minutes; a file of
many rows is flushed once. Rows are read and verified alone, so a file's size costs nothing when a few of its clients take part.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fl_hydra.files import CorruptFile, OddFile, again, make_folder, open_file, read_verified, write_atomically

if TYPE_CHECKING:
    from torch import Tensor

MAGIC = b"fl_hydra 1 client state "

FILE_BYTES = 64 * 2**20
"""The most bytes of a file, unless one client has more."""

DIGITS = 16
"""Hex digits of a SHA-256 by which a checkpoint identifies a row."""

Reference = tuple[Any, ...]
"""Where a client's state lies: the round after which it last changed, the digest of its bytes, a file, their offset and their number.
Older checkpoints have files of one client, and only (round, digest of the file)."""


def file_of(client: int, reference: Reference) -> str:
    """The name of the file in which a client's state lies."""
    return str(reference[2]) if len(reference) > 2 else f"{client}-{reference[0]}.pt"


def files_of(references: Mapping[int, Reference]) -> list[str]:
    """The names of the files in which the state of clients lies, each once."""
    return list(dict.fromkeys(file_of(client, reference) for client, reference in references.items()))


def rows_in(name: str) -> int:
    """How many clients a file was written for, as its name says."""
    return int(name.split("-")[1]) if name.endswith(".rows") else 1


def read_states(folder: Path, references: Mapping[int, Reference]) -> Iterator[tuple[int, Any]]:
    """Clients with their verified bytes, or in older files their tensors by name, file by file.

    Raises:
        CorruptFile: a file is missing, damaged, or not the one that was written then.
        OSError: one cannot be read now.
    """
    together: defaultdict[str, list[int]] = defaultdict(list)
    for client, reference in references.items():
        together[file_of(client, reference)].append(client)
    for name, clients in together.items():
        if len(references[clients[0]]) == 2:
            yield clients[0], read_verified(folder / name, references[clients[0]][1])
            continue
        clients.sort(key=lambda client: int(references[client][3]))
        parts = _read_parts(folder / name, [references[client][3:5] for client in clients])
        for client, part in zip(clients, parts, strict=True):
            _, digest, _, _, size = references[client]
            if len(part) != size or not hashlib.sha256(part).hexdigest().startswith(digest):
                raise CorruptFile(f"{name} is truncated or corrupted, or not the file that belongs here")
            yield client, part


def _read_parts(path: Path, spans: Sequence[tuple[int, int]]) -> list[bytes]:
    """Some bytes of a file: offsets and numbers."""

    def read() -> list[bytes]:
        with open_file(path, "rb") as file:
            parts = []
            for offset, size in spans:
                file.seek(offset)
                parts.append(file.read(size))
            return parts

    try:
        return again(read)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CorruptFile(f"{path.name} is missing") from error
    except OddFile as error:
        raise CorruptFile(f"{path.name} is {error.strerror}") from error


def check_shapes(client: int, state: Any, like: Mapping[str, Tensor]) -> None:
    """Raise CorruptFile unless the state of a client has the names and widths of tensors [any, width]."""
    shapes = {name: values[0].shape for name, values in like.items()}
    if not isinstance(state, dict) or {name: row.shape for name, row in state.items()} != shapes:
        raise CorruptFile(f"the state of client {client} is of other shapes")


class ClientFiles:
    """The files of one run.

    Args:
        folder: where they lie.
        like: tensors [any, width] by name, whose widths and dtype those of a client are.
        kind: goes into the digests in their names, which differ for other kinds of clients in the same folder.
    """

    def __init__(self, folder: Path, like: Mapping[str, Tensor], kind: str = "") -> None:
        self.folder, self._like, self._kind = folder, dict(like), kind
        self._widths = {name: like[name].shape[1] for name in sorted(like)}
        self._dtype = next(iter(like.values())).dtype
        self._header = MAGIC + json.dumps([self._widths, str(self._dtype)]).encode() + b"\n"
        self.row_bytes = sum(self._widths.values()) * self._dtype.itemsize
        self.rows_each = max(1, FILE_BYTES // self.row_bytes)
        """The most clients of a file."""

    def write(self, rounds: Mapping[int, int], rows: Mapping[str, Tensor]) -> tuple[dict[int, Reference], bool]:
        """Write a file, whole or not at all.

        Args:
            rounds: by client the round after which its state last changed; in the order of `rows`.
            rows: by name, [clients, width], on the host.

        Returns:
            where each client's state lies, and whether there was no such file before.

        Raises:
            OSError: the disk is full, or the folder cannot be written.
        """
        import torch

        content = torch.cat([rows[name] for name in self._widths], 1).contiguous().view(torch.uint8).numpy()
        digests = [hashlib.sha256(row).hexdigest()[:DIGITS] for row in content]
        own = hashlib.sha256("".join([*digests, self._kind]).encode()).hexdigest()[:DIGITS]
        name = f"{max(rounds.values())}-{len(digests)}-{own}.rows"  # other content has another name
        make_folder(self.folder)
        new = not (self.folder / name).exists()
        write_atomically(self.folder / name, self._header + content.tobytes())
        places = range(len(self._header), len(self._header) + content.size, self.row_bytes)
        places_of = zip(rounds.items(), digests, places, strict=True)
        return {client: (round, digest, name, offset, self.row_bytes) for (client, round), digest, offset in places_of}, new

    def read(self, references: Mapping[int, Reference]) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """Clients with their state by name, [width] each, on the host, in the order of files.

        Raises:
            CorruptFile, OSError: as :func:`read_states`; or it is of other shapes.
        """
        import torch

        for client, content in read_states(self.folder, references):
            if isinstance(content, bytes) and len(content) == self.row_bytes:
                vector = torch.frombuffer(bytearray(content), dtype=self._dtype)
                yield client, dict(zip(self._widths, torch.split(vector, list(self._widths.values())), strict=True))
            else:
                check_shapes(client, content, self._like)
                yield client, content

    def verify(self, references: Mapping[int, Reference]) -> None:
        """Read all that is referred to.

        Raises:
            CorruptFile, OSError: as :meth:`read`.
        """
        for name in files_of({client: reference for client, reference in references.items() if len(reference) > 2}):
            if _read_parts(self.folder / name, [(0, len(self._header))]) != [self._header]:
                raise CorruptFile(f"{name} is damaged, or of other shapes")
        for client, content in read_states(self.folder, references):
            if not isinstance(content, bytes) or len(content) != self.row_bytes:
                check_shapes(client, content, self._like)

    def names(self) -> list[str]:
        """The names of all that lies in the folder."""
        return [path.name for path in self.folder.iterdir()] if self.folder.is_dir() else []

    def remove(self, name: str) -> None:
        """Delete a file, if it is there.

        Raises:
            OSError: it cannot be deleted.
        """
        again(partial((self.folder / name).unlink, missing_ok=True))
