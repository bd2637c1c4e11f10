"""State that belongs to a client and outlives a round: momentum of a LocalSGD worker, control variates, personal layers.

Clients of the current cohort are resident: their rows are stacked on the device as long as the cohort lasts. The others are
kept on the host until a checkpoint, and then in immutable files, one for each (client, round), which checkpoints refer to by
their digests. So a checkpoint writes only what changed since the last one, a file of another run is never mistaken for its own,
memory is bounded for any K, and a method without such state costs nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from fl_hydra.arrays import Indices
from fl_hydra.files import CorruptFile, make_folder, read_verified, write_verified

HOST_BYTES = 512 * 2**20
"""Client state kept on the host between two checkpoints, before it is written out early."""

DIGITS = 16
"""Hex digits of a file's SHA-256 by which a checkpoint identifies it."""

References = Mapping[int, tuple[int, str | dict[str, Tensor]]]
"""By client: the round after which its state last changed, and the digest of its file; without a folder, the state itself."""


class ClientStore:
    """State by client id.

    Args:
        initial: initial state by name, [1, width] for all clients alike, or [K, width]; empty for methods without such state.
        folder: where files are written; None keeps everything on the host.
    """

    def __init__(self, initial: Mapping[str, Tensor], folder: Path | None = None) -> None:
        self._initial = dict(initial)
        self._folder = folder
        self.check: Callable[[], None] = lambda: None
        """Called before a file is written or deleted; raises if the run may not do so any more."""
        self._resident_ids: tuple[int, ...] = ()
        self._resident: dict[str, Tensor] = {}
        self._resident_round = -1
        self._host: OrderedDict[int, dict[str, Tensor]] = OrderedDict()
        self._unwritten: set[int] = set()
        self._rounds: dict[int, int] = {}
        """The round after which each client's state last changed; its file is named by the client's id and this round."""
        self._digests: dict[int, str] = {}
        """Digest of the file of each client whose state is on disk."""
        bytes_each = sum(values[0].nbytes for values in self._initial.values())
        self._host_limit = max(1, HOST_BYTES // bytes_each) if bytes_each else 0

    def check_out(self, ids: Indices, round: int, rows: dict[str, Tensor]) -> None:
        """Copy the state of a round's cohort into `rows`, where it is changed in place and stays as long as the cohort.

        Args:
            ids: int64 [rows], distinct.
            round: the round that will change them.
            rows: by name, [rows, width]; clients never seen get initial values.
        """
        if not self._initial:
            return
        wanted = tuple(ids.tolist())
        moved = any(name not in self._resident or self._resident[name].data_ptr() != row.data_ptr() for name, row in rows.items())
        if wanted != self._resident_ids or moved:
            self.retire()
            for position, client in enumerate(wanted):
                state = self._load(client)
                for name, row in rows.items():
                    row[position].copy_(self._first(name, client) if state is None else state[name])
            self._resident_ids, self._resident = wanted, rows
        self._resident_round = round

    def retire(self) -> None:
        """Copy the current cohort's state back to the host, to free its rows for others."""
        for position, client in enumerate(self._resident_ids):
            self._host[client] = {name: rows[position].to("cpu", copy=True) for name, rows in self._resident.items()}
            self._host.move_to_end(client)
            self._rounds[client] = self._resident_round
            self._unwritten.add(client)
        self._resident_ids = ()
        if self._folder is not None:
            while len(self._host) > self._host_limit:
                client, state = self._host.popitem(last=False)
                self._write(client, state)

    def read(self, ids: Indices, name: str) -> Tensor:
        """The current state of some clients, int64 [n], under a name, [n, width], on the device; if resident, from its row."""
        resident = {client: position for position, client in enumerate(self._resident_ids)}
        found = []
        for client in ids.tolist():
            if client in resident:
                found.append(self._resident[name][resident[client]])
            else:
                state = self._load(client)
                found.append(self._first(name, client) if state is None else state[name].to(self._initial[name].device))
        return torch.stack(found)

    def _first(self, name: str, client: int) -> Tensor:
        values = self._initial[name]
        return values[client if len(values) > 1 else 0]

    def _load(self, client: int) -> dict[str, Tensor] | None:
        if client not in self._rounds:
            return None
        if client in self._host:
            return self._host[client]
        state: dict[str, Tensor] = read_verified(self._path(client, self._rounds[client]), self._digests[client])
        return state

    def _path(self, client: int, round: int) -> Path:
        assert self._folder is not None
        return self._folder / f"{client}-{round}.pt"

    def _write(self, client: int, state: dict[str, Tensor]) -> None:
        if client in self._unwritten:
            self.check()
            path = self._path(client, self._rounds[client])
            make_folder(path.parent)
            self._digests[client] = write_verified(path, state)[:DIGITS]
            self._unwritten.discard(client)

    def save(self) -> References:
        """What a checkpoint stores; with a folder, state that is not on disk yet is written first."""
        if self._initial:
            resident = self._resident_ids
            self.retire()
            self._resident_ids = resident  # their rows stay in place
        if self._folder is None:
            return {client: (self._rounds[client], dict(state)) for client, state in self._host.items()}
        for client, state in self._host.items():
            self._write(client, state)
        return {client: (round, self._digests[client]) for client, round in self._rounds.items()}

    def restore(self, references: References) -> None:
        """Restore the state that a checkpoint refers to.

        Raises:
            CorruptFile: a file is missing, damaged, not the one that was written then, or has other shapes.
            OSError: one cannot be read now.
        """
        given: dict[int, dict[str, Tensor]] = {}
        for client, (round, kept) in references.items():  # before anything changes, so that a damaged file leaves the store as it was
            if not isinstance(kept, str):
                given[client] = kept
            state = read_verified(self._path(client, round), kept) if isinstance(kept, str) else kept
            if {name: row.shape for name, row in state.items()} != {name: values[0].shape for name, values in self._initial.items()}:
                raise CorruptFile(f"the state of client {client} is of other shapes")
        self._resident_ids = ()
        self._host = OrderedDict(given)
        self._unwritten = set(given)
        self._rounds = {client: round for client, (round, _) in references.items()}
        self._digests = {client: kept for client, (_, kept) in references.items() if isinstance(kept, str)}

    def collect(self, kept: list[References]) -> None:
        """Delete files to which neither a checkpoint in `kept` nor the current state refers. One that cannot be deleted stays."""
        if self._folder is None or not self._folder.is_dir():
            return
        rounds = [{client: round for client, (round, _) in references.items()} for references in kept]
        needed = {f"{client}-{round}.pt" for references in [*rounds, self._rounds] for client, round in references.items()}
        for path in self._folder.iterdir():
            if path.name not in needed:
                self.check()
                with suppress(OSError):
                    path.unlink(missing_ok=True)
