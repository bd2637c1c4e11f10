"""Where the state of clients is held between their rounds: on the device, on the host, or only until a file of it is written."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from fl_hydra.devices import free_memory, total_memory
from fl_hydra.training.client_files import FILE_BYTES

PARTS = {"device": 0.5, "cpu": 0.25}
"""The fractions of free memory that client state may take there; what does not fit is in files alone."""

AUTO_PART = 0.125
"""`auto` chooses a GPU if the state of all clients takes at most this fraction of its memory."""

UNKNOWN_BYTES = 2**29
"""What it may take where the system does not say how much memory is free."""


def place(state_on: str, device: torch.device, bytes_of_all: int, runs: int) -> tuple[torch.device, int]:
    """Where client state is held, and the most bytes of it.

    Args:
        state_on: `auto`, `device`, `cpu` or `disk`. device: on which rows train.
        bytes_of_all: of the state of all clients of a run. runs: that share the memory.
    """
    host = torch.device("cpu")
    if state_on == "disk":
        return host, FILE_BYTES
    if state_on == "auto":
        fits = device.type == "cuda" and runs * bytes_of_all <= AUTO_PART * total_memory(device)
        state_on = "device" if fits else "cpu"
    where = device if state_on == "device" else host
    free = free_memory(where)
    return where, UNKNOWN_BYTES if free is None else int(PARTS[state_on] * free) // runs


CHUNK_BYTES = 2**28
"""Bytes that are allocated at once as rows are needed; on a CPU they are taken page by page as rows are written."""


class ClientMemory:
    """Rows of the state of some clients.

    Args:
        like: tensors [any, width] by name. capacity: the most clients. device: of the memory.
    """

    def __init__(self, like: Mapping[str, Tensor], capacity: int, device: torch.device) -> None:
        self.capacity, self.device = capacity, device
        self._like = dict(like)
        self._chunk_rows = max(1, min(capacity, CHUNK_BYTES // sum(values[0].nbytes for values in like.values())))
        self._chunks: list[dict[str, Tensor]] = []
        self._slots: OrderedDict[int, int] = OrderedDict()
        """The row of each client, the one that was put first at the front."""
        self._free: list[int] = []

    def __contains__(self, client: int) -> bool:
        return client in self._slots

    def __len__(self) -> int:
        return len(self._slots)

    def clients(self) -> Iterator[int]:
        """All, the one that was put first at the front."""
        return iter(self._slots)

    def put(self, clients: Sequence[int], rows: Mapping[str, Tensor]) -> None:
        """Copy rows of clients, [clients, width] by name, into their places; there must be room for them."""
        for client in clients:
            if client in self._slots:
                self._slots.move_to_end(client)
            else:
                if not self._free:
                    self._allocate()
                self._slots[client] = self._free.pop()
        for name, values in rows.items():
            for client, row in zip(clients, values.to(self.device), strict=True):
                self.row(client, name).copy_(row)

    def row(self, client: int, name: str) -> Tensor:
        """The row of a client, [width], in its place."""
        chunk, row = divmod(self._slots[client], self._chunk_rows)
        return self._chunks[chunk][name][row]

    def take(self, clients: Sequence[int], names: Iterable[str]) -> dict[str, Tensor]:
        """Copies of the rows of clients, [clients, width] by name."""
        return {name: torch.stack([self.row(client, name) for client in clients]) for name in names}

    def forget(self, clients: Iterable[int]) -> None:
        """Give the places of clients to others."""
        self._free += [self._slots.pop(client) for client in clients if client in self._slots]

    def _allocate(self) -> None:
        first = len(self._chunks) * self._chunk_rows
        rows = min(self._chunk_rows, self.capacity - first)
        self._chunks.append({name: values.new_empty(rows, values.shape[1], device=self.device) for name, values in self._like.items()})
        self._free += range(first + rows - 1, first - 1, -1)
