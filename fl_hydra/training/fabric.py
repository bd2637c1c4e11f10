"""Communication: the only code that knows which process holds which rows, and the ledger of what was sent."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Traffic:
    """What a run has sent so far, and how often it had to wait for it.

    bytes_up: payload that workers have sent. bytes_down: payload that a server, or the average, has sent back. messages: of both.
    steps: local steps in a row, those of the row with most steps in each round. averages: means over all rows of a round that the rows
    wait for; block_averages: of these, those within blocks of rows, all blocks at once. exchanges: messages in a row between neighbours
    that wait for each other, those of the worker with most of them; exchanged: payload bytes between neighbours, whether they wait or
    not, of all workers; they are in `bytes_up` too. served: of the messages, those to and from a server.
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

    Args:
        remote: whether a single row, too, is far from its model (a client), or is where the model is (a lone worker).
        rows: how many there are. reports: how many of them will send what they have. traffic: the run's ledger.
    """

    def __init__(self, remote: bool, rows: int, reports: int, traffic: Traffic) -> None:
        self._remote, self._rows, self._reports, self.traffic = remote, rows, reports, traffic

    def count_down(self, values: Tensor) -> None:
        """Enter in the ledger that every row was sent `values` [1, P]."""
        if self._remote or self._rows > 1:
            self.traffic.bytes_down += self._rows * values[0].numel() * values.element_size()
            self.traffic.messages += self._rows
            self.traffic.served += self._rows * self._remote

    def count_up(self, values: Tensor) -> None:
        """Enter in the ledger that every row that reports sent one of `values` [any, P] to be averaged."""
        if self._remote or self._rows > 1:
            self.traffic.bytes_up += self._reports * values[0].numel() * values.element_size()
            self.traffic.messages += self._reports
            self.traffic.served += self._reports * self._remote
            self.traffic.averages += 1

    def broadcast(self, models: Tensor) -> Tensor:
        """Send each row the run's model: [1, P] -> [rows, P], without a copy."""
        self.count_down(models)
        return models.expand(self._rows, -1)

    def mean(self, values: Tensor, weights: Tensor) -> Tensor:
        """The weighted mean: values [rows, P], weights [rows] summing to 1 -> [1, P]."""
        self.count_up(values)
        return self.sum_weighted(values, weights)

    def sum_weighted(self, values: Tensor, weights: Tensor) -> Tensor:
        """The same of what is known already; nothing is sent."""
        # Row by row, as rows are summed that come in one by one: the last bits of a product depend on where its factors lie in memory.
        total = torch.zeros_like(values[:1])
        for row, weight in zip(values, weights, strict=True):
            total[0].addcmul_(row, weight)
        return total
