"""Communication: the only code that knows which process holds which rows, and the ledger of what was sent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Traffic:
    """What a run has sent so far, and how often it had to wait for it.

    bytes_up: payload that workers have sent. bytes_down: payload that a server, or the average, has sent back. messages: of both.
    steps: local steps on the critical path: in each round, those of the row with most. averages: means over all rows of a round, for
    which they wait; block_averages: of these, those within blocks of rows, all blocks at once. exchanges: messages on the critical path
    between neighbours that wait for each other, those of the worker with most of them. exchanged: payload bytes between neighbours, of
    all workers, whether they wait or not; `bytes_up` has them too. served: of the messages, those to and from a server.
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
        """Enter means of `payload` bytes from each worker, which all of them receive."""
        self.bytes_up += times * workers * payload
        self.bytes_down += times * workers * payload
        self.messages += times * 2 * workers
        self.averages += times

    def visit(self, payload: int) -> None:
        """Enter that one worker has sent `payload` bytes to a server and got as many back, while the others went on."""
        self.bytes_up += payload
        self.bytes_down += payload
        self.messages += 2
        self.served += 2

    def exchange(self, messages: int, in_a_row: int, payload: int) -> None:
        """Enter messages of `payload` bytes between neighbours; the busiest worker waits for `in_a_row` of them, one after the other."""
        self.bytes_up += messages * payload
        self.exchanged += messages * payload
        self.messages += messages
        self.exchanges += in_a_row


class Fabric:
    """Reductions over the rows that one run has in a round, which one process holds.

    All that a row is sent in a round is one message, and so is all that it sends; rows wait for one average.

    Args:
        remote: whether even one row communicates (a client with its server), or not (a lone worker has the model).
        rows: how many there are. reports: how many of them will send what they have. traffic: the run's ledger.
        wire: how many bytes a vector takes on the wire.
    """

    def __init__(self, remote: bool, rows: int, reports: int, traffic: Traffic, wire: Wire | None = None) -> None:
        self._rows, self._reports, self.traffic = rows, reports, traffic
        self._remote, self._apart = remote, remote or rows > 1
        self._wire = wire or Wire()
        self._sent_down = self._sent_up = False

    def count_down(self, values: Tensor, plain: bool = False) -> None:
        """Enter in the ledger that every row was sent one of `values` [1 or rows, width]; `plain`: all of it, as it is."""
        if self._apart:
            self.traffic.bytes_down += self._rows * (_bytes(values) if plain else self._wire.down(values))
            if not self._sent_down:
                self.traffic.messages += self._rows
                self.traffic.served += self._rows * self._remote
            self._sent_down = True

    def count_up(self, values: Tensor, plain: bool = False) -> None:
        """Enter in the ledger that every row that reports sent one of `values` [any, width] to be averaged; `plain`: all, as it is."""
        if self._apart:
            self.traffic.bytes_up += self._reports * (_bytes(values) if plain else self._wire.up(values))
            if not self._sent_up:
                self.traffic.messages += self._reports
                self.traffic.served += self._reports * self._remote
                self.traffic.averages += 1
            self._sent_up = True

    def count_average(self, values: Tensor) -> None:
        """Enter an average [1, width] in the middle of a round, which all rows wait for and receive: messages of its own."""
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
        """The weighted sum of what the rows send: values [rows, width], weights [rows] -> [1, width]."""
        self.count_up(values)
        return self.sum_weighted(values, weights)

    def sum_weighted(self, values: Tensor, weights: Tensor) -> Tensor:
        """The same of what is known already; nothing is sent."""
        # Row by row, as rows are summed that come in one by one: the last bits of a product depend on where its factors lie in memory.
        total = torch.zeros_like(values[:1])
        for row, weight in zip(values, weights, strict=True):
            total[0].addcmul_(row, weight)
        return total


class Wire:
    """What a vector takes on the wire.

    Args:
        size: numbers of a model. kept: of these, those that stay with their client.
        encoded: bytes of a vector of so many numbers of so many bytes, on its way up; None: of all of them.
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
    """Of one of `values` [any, width]."""
    return values[0].numel() * values.element_size()
