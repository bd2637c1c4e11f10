"""State that belongs to a client and outlives a round: momentum of a LocalSGD worker, control variates, personal layers.

Clients of the current cohort are resident: their rows are stacked on the device as long as the cohort lasts. The others are held
in memory (`client_memory.py`) as far as it goes, and beyond that in immutable files (`client_files.py`), which checkpoints refer to
by digests. So a checkpoint writes only what changed since the last one, a file of another run is never mistaken for its own,
memory is bounded for any K, and a method without such state costs nothing. Where state is held changes no bit of it.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fl_hydra.arrays import Indices
from fl_hydra.devices import to_device
from fl_hydra.files import CorruptFile
from fl_hydra.training.client_files import ClientFiles, Reference, check_shapes, file_of, rows_in
from fl_hydra.training.client_memory import ClientMemory, place

DIGESTED_AT_ONCE = 64


class ClientStore:
    """State by client id.

    Args:
        initial: initial state by name, [1, width] for all clients alike, or [K, width]; empty for methods without such state.
        clients: K.
        folder: where files are written; None keeps everything in memory.
        state_on: where clients are held between rounds: `auto`, `device`, `cpu` or `disk`.
        runs: that share the memory.
        kind: of several stores that share the folder, which one this is; "" of one alone.
    """

    def __init__(
        self,
        initial: Mapping[str, Tensor],
        clients: int,
        folder: Path | None = None,
        state_on: str = "cpu",
        runs: int = 1,
        kind: str = "",
    ) -> None:
        self._initial, self._count = dict(initial), clients
        self._state_on, self._runs = state_on, runs
        self.check: Callable[[], None] = lambda: None
        """Called before a file is written or deleted; raises if the run may not do so any more."""
        self._files = ClientFiles(folder, initial, kind) if folder is not None and initial else None
        self._held: ClientMemory | None = None
        self._resident_ids: tuple[int, ...] = ()
        self._resident: dict[str, Tensor] = {}
        self._resident_round = -1
        self._rounds: dict[int, int] = {}
        """The round after which each client's state last changed."""
        self._written: dict[int, Reference] = {}
        """Where the state of each client lies, if it is in a file as it is now."""
        self._living: Counter[str] = Counter()
        """How many clients each file still serves."""
        self._unseen: set[str] = set()
        """Files to which no checkpoint can refer yet."""

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
            self._fill(wanted, rows)
            self._resident_ids, self._resident = wanted, rows
        self._resident_round = round

    def retire(self) -> None:
        """Copy the current cohort's state to where it is held, to free its rows for others."""
        changed = {
            client: position
            for position, client in enumerate(self._resident_ids)
            if client not in self._written or self._rounds[client] != self._resident_round
        }
        self._resident_ids = ()
        if not changed:
            return
        for client in changed:
            self._rounds[client] = self._resident_round
            self._outdate(client)
        rows = self._resident
        if len(changed) < len(next(iter(rows.values()))):
            where = to_device(np.array(list(changed.values()), np.int64), self._device)
            rows = {name: row.index_select(0, where) for name, row in rows.items()}
        self._hold(list(changed), rows)

    def read(self, ids: Indices, name: str) -> Tensor:
        """The current state of some clients, int64 [n], under a name, [n, width], on the device; if resident, from its row. A client may
        occur more than once."""
        unique, places = np.unique(ids, return_inverse=True)
        if len(unique) < len(ids):
            return self.read(unique, name)[to_device(places, self._device)]
        clients = ids.tolist()
        found = self._initial[name].new_empty(len(clients), self._initial[name].shape[1])
        self._fill(clients, {name: found})
        resident = {client: position for position, client in enumerate(self._resident_ids)}
        for position, client in enumerate(clients):
            if client in resident:
                found[position].copy_(self._resident[name][resident[client]])
        return found

    def _fill(self, clients: Sequence[int], rows: Mapping[str, Tensor]) -> None:
        """Copy the state of clients into `rows`, [clients, width] by name, from wherever it is held."""
        held, stored, inside = self._held, {}, []
        for position, client in enumerate(clients):
            if held is not None and client in held:
                inside.append(position)
            elif client in self._written:
                stored[client] = position
            else:
                for name, row in rows.items():
                    values = self._initial[name]
                    row[position].copy_(values[client if len(values) > 1 else 0])
        if held is not None and inside:
            if held.device == self._device:
                for name, row in rows.items():
                    for position in inside:
                        row[position].copy_(held.row(clients[position], name))
            else:
                self._send(rows, inside, held.take([clients[position] for position in inside], rows))
        if stored:
            assert self._files is not None
            read = list(self._files.read({client: self._written[client] for client in stored}))
            self._send(
                rows, [stored[client] for client, _ in read], {name: torch.stack([state[name] for _, state in read]) for name in rows}
            )

    def _send(self, rows: Mapping[str, Tensor], positions: Sequence[int], values: Mapping[str, Tensor]) -> None:
        """Copy values [positions, width] on the host to their rows, in one transfer for each name."""
        where = to_device(np.array(positions, np.int64), self._device)
        for name, row in rows.items():
            row.index_copy_(0, where, to_device(values[name].numpy(), self._device))

    @property
    def _device(self) -> torch.device:
        return next(iter(self._initial.values())).device

    def _memory(self) -> ClientMemory:
        """Where clients are held; allocated when it is first needed, so that rows in training come first."""
        if self._held is None:
            each = sum(values[0].nbytes for values in self._initial.values())
            device, most = place(self._state_on, self._device, self._count * each, self._runs)
            capacity = self._count if self._files is None else max(1, min(self._count, most // each))
            self._held = ClientMemory(self._initial, capacity, device)
        return self._held

    def _hold(self, clients: Sequence[int], rows: Mapping[str, Tensor]) -> None:
        """Copy rows of clients to memory; if it is full, files of those that have not changed for longest are written."""
        held = self._memory()
        beyond = max(0, len(clients) - held.capacity)
        if beyond:
            held.forget(clients[:beyond])
            for first in range(0, beyond, self._rows_each):
                part = slice(first, min(first + self._rows_each, beyond))
                self._write(clients[part], {name: row[part] for name, row in rows.items()})
            clients, rows = clients[beyond:], {name: row[beyond:] for name, row in rows.items()}
        missing = len(held) + sum(client not in held for client in clients) - held.capacity
        if missing > 0:
            own = set(clients)
            others = len(held) - sum(client in held for client in clients)
            count = min(others, max(missing, min(held.capacity // 2, self._rows_each)))
            leaving = list(islice((client for client in held.clients() if client not in own), count))
            self._write_held([client for client in leaving if client not in self._written])
            held.forget(leaving)
        held.put(clients, rows)

    @property
    def _rows_each(self) -> int:
        assert self._files is not None
        return self._files.rows_each

    def _write_held(self, clients: Sequence[int]) -> None:
        """Write files of clients that are held in memory."""
        for first in range(0, len(clients), self._rows_each if clients else 1):
            some = clients[first : first + self._rows_each]
            self._write(some, self._memory().take(some, self._initial))

    def _write(self, clients: Sequence[int], rows: Mapping[str, Tensor]) -> None:
        """Write a file of rows of clients, [clients, width] by name."""
        assert self._files is not None
        self.check()
        references, new = self._files.write(
            {client: self._rounds[client] for client in clients}, {name: row.cpu() for name, row in rows.items()}
        )
        for client, reference in references.items():
            self._outdate(client)
            self._written[client] = reference
            self._living[file_of(client, reference)] += 1
        if new:
            self._unseen.add(file_of(*next(iter(references.items()))))

    def _outdate(self, client: int) -> None:
        """Forget the file of a client; if it serves nobody else, and no checkpoint refers to it, it is deleted."""
        if (reference := self._written.pop(client, None)) is None:
            return
        name = file_of(client, reference)
        self._living[name] -= 1
        if not self._living[name]:
            del self._living[name]
            if name in self._unseen:
                self._unseen.discard(name)
                self._delete(name)

    def _delete(self, name: str) -> None:
        """Delete a file; one that cannot be deleted stays."""
        assert self._files is not None
        self.check()
        with suppress(OSError):
            self._files.remove(name)

    def save(self) -> dict[int, Reference]:
        """What a checkpoint stores: by client, where its state lies; what is not on disk yet is written first. Without a folder, the round
        after which it last changed, and the state itself."""
        if self._initial:
            resident = self._resident_ids
            self.retire()
            self._resident_ids = resident  # their rows stay in place
        if self._files is None:
            return self._saved_in_memory()
        if self._held is not None:
            self._write_held([client for client in self._held.clients() if client not in self._written])
        self._gather_sparse()
        self._unseen.clear()
        return {client: self._written[client] for client in self._rounds}

    def _saved_in_memory(self) -> dict[int, Reference]:
        if not self._rounds:
            return {}
        rows = self._memory().take(list(self._rounds), self._initial)
        return {
            client: (round, {name: values[position].to("cpu", copy=True) for name, values in rows.items()})
            for position, (client, round) in enumerate(self._rounds.items())
        }

    def _gather_sparse(self) -> None:
        """Write the clients of files that serve less than half of those that they were written for once more, together."""
        assert self._files is not None
        sparse = {name for name, living in self._living.items() if 2 * living < rows_in(name)}
        if not sparse:
            return
        clients = {client: reference for client, reference in self._written.items() if file_of(client, reference) in sparse}
        each = self._rows_each
        for first in range(0, len(clients), each):
            read = list(self._files.read(dict(islice(clients.items(), first, first + each))))
            rows = {name: torch.stack([state[name] for _, state in read]) for name in self._initial}
            self._write([client for client, _ in read], rows)

    @property
    def named(self) -> tuple[str, ...]:
        """Names of what clients keep; empty for methods without such state."""
        return tuple(sorted(self._initial))

    def digest(self) -> str:
        """SHA-256 over the state of all clients that have taken part, 64 hex digits; it does not depend on where the state is held."""
        if self._initial:
            resident = self._resident_ids
            self.retire()
            self._resident_ids = resident  # their rows stay in place
        digest, clients, names = hashlib.sha256(), sorted(self._rounds), self.named
        for first in range(0, len(clients), DIGESTED_AT_ONCE):
            some = clients[first : first + DIGESTED_AT_ONCE]
            rows = {name: self._initial[name].new_empty(len(some), self._initial[name].shape[1]) for name in names}
            self._fill(some, rows)
            digest.update(np.array(some, np.int64).tobytes())
            for name in names:
                digest.update(name.encode())
                digest.update(rows[name].cpu().numpy().tobytes())
        return digest.hexdigest()

    def restore(self, references: Mapping[int, Reference]) -> None:
        """Restore the state that a checkpoint refers to.

        Raises:
            CorruptFile: a file is missing, damaged, not the one that was written then, or has other shapes.
            OSError: one cannot be read now.
        """
        given: dict[int, dict[str, Tensor]] = {}
        written: dict[int, Reference] = {}
        for client, reference in references.items():  # before anything changes, so that a damaged file leaves the store as it was
            if isinstance(reference[1], str):
                written[client] = tuple(reference)
            else:
                check_shapes(client, reference[1], self._initial)
                given[client] = reference[1]
        if written:
            if self._files is None:
                raise CorruptFile("it refers to client state, which this run does not have")
            self._files.verify(written)
        self._resident_ids, self._held = (), None
        self._rounds = {client: reference[0] for client, reference in references.items()}
        self._written = written
        self._living = Counter(file_of(client, reference) for client, reference in written.items())
        self._unseen = set()
        if given:
            self._hold(list(given), {name: torch.stack([state[name] for state in given.values()]) for name in self._initial})

    @property
    def living(self) -> frozenset[str]:
        """The files to which the current state refers."""
        return frozenset(self._living)

    def collect(self, kept: Sequence[Mapping[int, Reference]], others: Collection[str] = ()) -> None:
        """Delete files to which neither a checkpoint in `kept` nor the current state refers, except `others`. One that cannot be deleted
        stays."""
        if self._files is None:
            return
        needed = {file_of(client, reference) for references in kept for client, reference in references.items()} | self._living.keys()
        for name in self._files.names():
            if name not in needed and name not in others:
                self._delete(name)
