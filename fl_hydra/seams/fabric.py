"""Communication: the only code that knows which process holds which rows, and the ledger of what is sent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Traffic:
    """A run's communication so far, and how often it had to wait.

    bytes_up: payload that workers have sent. bytes_down: payload that they received from a server or an average. messages: of both.
    steps: critical-path local steps, in each round the most that any row takes. averages: means over all rows of a round, for which
    they wait; block_averages: those of them that are within blocks of rows, counted once for all blocks. exchanges: critical-path messages
    between neighbours that wait for each other, those of the busiest worker. exchanged: payload bytes between neighbours, of all workers,
    whether they wait or not; included in `bytes_up`. served: how many of the messages go to or come from a server.
    """

    bytes_up: int = 0
    bytes_down: int = 0
    messages: int = 0
    steps: int = 0
    averages: int = 0
    exchanges: int = 0
    exchanged: int = 0
    block_averages: int = 0
    served: int = 0

    def average(self, workers: int, payload: int, times: int = 1) -> None:
        """Record means of `payload` bytes from each worker, which all of them receive."""
        self.bytes_up += times * workers * payload
        self.bytes_down += times * workers * payload
        self.messages += times * 2 * workers
        self.averages += times

    def visit(self, payload: int) -> None:
        """Record that one worker sent `payload` bytes to a server and got as many back, while the others kept working."""
        self.bytes_up += payload
        self.bytes_down += payload
        self.messages += 2
        self.served += 2

    def exchange(self, messages: int, in_a_row: int, payload: int) -> None:
        """Record messages of `payload` bytes between neighbours; the busiest worker waits for `in_a_row` of them, one after another."""
        self.bytes_up += messages * payload
        self.exchanged += messages * payload
        self.messages += messages
        self.exchanges += in_a_row


class Fabric:
    """Reductions over one run's rows in a round, all held by one process.

    Everything sent to a row in a round is one message, and so is everything it sends; rows wait for one average.

    Args:
        remote: whether even a single row communicates (a client with its server) or not (a lone worker holds the model).
        rows: their number. reports: how many of them report back. traffic: the run's ledger.
        wire: the size of vectors on the wire. silent: whether nothing is sent, and nothing counted.
    """

    def __init__(self, remote: bool, rows: int, reports: int, traffic: Traffic, wire: Wire | None = None, *, silent: bool = False) -> None:
        self._rows, self._reports, self.traffic = rows, reports, traffic
        self._remote, self._apart = remote, (remote or rows > 1) and not silent
        self._wire = wire or Wire()
        self._sent_down = self._sent_up = False
        self.waits = True
        """Whether the server's waiting for these rows is charged: of groups of rows that report together, once."""

    def count_down(self, values: Tensor, plain: bool = False) -> None:
        """Charge for sending every row one of `values` [1 or rows, width]; `plain`: with the columns that otherwise stay with clients."""
        if self._apart and self._rows:
            self.traffic.bytes_down += self._rows * (_bytes(values) if plain else self._wire.down(values))
            if not self._sent_down:
                self.traffic.messages += self._rows
                self.traffic.served += self._rows * self._remote
            self._sent_down = True

    def count_up(self, values: Tensor, plain: bool = False) -> None:
        """Charge every reporting row for one of `values` [any, width], sent to be averaged; `plain`: all columns, not encoded."""
        if self._reports:
            self.charge_up(self._reports * (_bytes(values) if plain else self._wire.up(values)))

    def charge_up(self, total: int) -> None:
        """Charge the reporting rows for `total` bytes that they send together, each as many as it has."""
        if self._apart and self._reports:
            self.traffic.bytes_up += total
            if not self._sent_up:
                self.traffic.messages += self._reports
                self.traffic.served += self._reports * self._remote
                self.traffic.averages += self.waits
            self._sent_up = True

    def charge_down(self, total: int) -> None:
        """Charge the reporting rows for `total` bytes that they receive together, each as many as there are for it."""
        if self._apart:
            self.traffic.bytes_down += total
            if not self._sent_down:
                self.traffic.messages += self._reports
                self.traffic.served += self._reports * self._remote
            self._sent_down = True

    def count_before(self, values: Tensor) -> None:
        """Charge every reporting row for one of `values` [any, width], sent before its local steps, for which the server waits; its answer,
        a message to each row, is part of what is sent down."""
        if self._apart:
            self.traffic.bytes_up += self._reports * _bytes(values)
            self.traffic.messages += self._rows + self._reports
            self.traffic.served += (self._rows + self._reports) * self._remote
            self.traffic.averages += 1

    def count_average(self, values: Tensor) -> None:
        """Charge for an average [1, width] in the middle of a round, which all rows wait for and receive, in separate messages."""
        if self._apart:
            size = _bytes(values)
            self.traffic.bytes_down += self._rows * size
            self.traffic.bytes_up += self._reports * size
            self.traffic.messages += self._rows + self._reports
            self.traffic.served += (self._rows + self._reports) * self._remote
            self.traffic.averages += 1

    def broadcast(self, models: Tensor) -> Tensor:
        """Send each row the run's model: [1, P] -> [rows, P], without a copy."""
        self.count_down(models)
        return models.expand(self._rows, -1)

    def sum(self, values: Tensor, weights: Tensor) -> Tensor:
        """The weighted sum of the vectors that rows send: values [rows, width], weights [rows] -> [1, width]."""
        self.count_up(values)
        return self.sum_weighted(values, weights)

    def sum_weighted(self, values: Tensor, weights: Tensor) -> Tensor:
        """The weighted sum of vectors that were already sent; nothing is charged."""
        # Row by row, as when rows finish one by one: the last bits of a matrix product depend on where its factors lie in memory.
        total = torch.zeros_like(values[:1])
        for row, weight in zip(values, weights, strict=True):
            total[0].addcmul_(row, weight)
        return total


class Wire:
    """The size of a vector on the wire.

    Args:
        size: numbers in a model. kept: how many of them are never sent.
        encoded: bytes of a vector sent up, from its length and the bytes of each number; None: vectors are not encoded.
    """

    def __init__(self, size: int = -1, kept: int = 0, encoded: Callable[[int, int], int] | None = None) -> None:
        self._size, self._kept, self._encoded = size, kept, encoded

    def _width(self, values: Tensor) -> int:
        width = values[0].numel()
        return width - self._kept if width == self._size else width

    def down(self, values: Tensor) -> int:
        """Bytes of one of `values` [any, width] from the server."""
        return self._width(values) * values.element_size()

    def up(self, values: Tensor) -> int:
        """Bytes of one of `values` [any, width] to the server."""
        width, each = self._width(values), values.element_size()
        return width * each if self._encoded is None else self._encoded(width, each)


def _bytes(values: Tensor) -> int:
    """The size of one of `values` [any, width]."""
    return values[0].numel() * values.element_size()
