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
    """Reductions within a run, over rows that one process holds. The rows of a run are neighbours.

    Args:
        remote: whether a single row, too, is far from its model (a client), or is where the model is (a lone worker).
    """

    def __init__(self, remote: bool) -> None:
        self._remote = remote
        self._rows: list[int] = []
        self._reports: list[int] = []
        self._ledger: list[Traffic] = []

    def begin(self, rows: list[int], ledger: list[Traffic], reports: list[int] | None = None) -> None:
        """Before a round: how many rows each run has in it, the ledger of each, and how many rows will send what they have (None: all)."""
        self._rows, self._ledger = rows, ledger
        self._reports = rows if reports is None else reports

    @property
    def sections(self) -> list[slice]:
        """The rows of each run."""
        stops = [sum(self._rows[: run + 1]) for run in range(len(self._rows))]
        return [slice(stop - rows, stop) for rows, stop in zip(self._rows, stops, strict=True)]

    def count_down(self, values: Tensor) -> None:
        """Enter in the ledger that every row was sent one of its run's `values` [runs, P]."""
        for rows, traffic in zip(self._rows, self._ledger, strict=True):
            if self._remote or rows > 1:
                traffic.bytes_down += rows * values[0].numel() * values.element_size()
                traffic.messages += rows
                traffic.served += rows * self._remote

    def count_up(self, values: Tensor) -> None:
        """Enter in the ledger that every row that reports sent one of `values` [any, P] to be averaged."""
        for rows, reports, traffic in zip(self._rows, self._reports, self._ledger, strict=True):
            if self._remote or rows > 1:
                traffic.bytes_up += reports * values[0].numel() * values.element_size()
                traffic.messages += reports
                traffic.served += reports * self._remote
                traffic.averages += 1

    def broadcast(self, models: Tensor) -> Tensor:
        """Send each row its run's model: [runs, P] -> [rows, P], perhaps without a copy."""
        self.count_down(models)
        if len(models) == 1:
            return models.expand(sum(self._rows), -1)
        return torch.cat([model.expand(rows, -1) for model, rows in zip(models, self._rows, strict=True)])

    def mean(self, values: Tensor, weights: Tensor) -> Tensor:
        """The weighted mean within each run: values [rows, P], weights [rows] summing to 1 in a run -> [runs, P]."""
        self.count_up(values)
        # Run by run: in a product with zeros for the rows of other runs, one that has diverged would spoil them all.
        return torch.stack([weights[section] @ values[section] for section in self.sections])

    def sum(self, values: Tensor) -> Tensor:
        """Sums within each run of what the rows know of themselves, [rows, ...] -> [runs, ...]; nothing is sent."""
        return torch.stack([values[section].sum(0) for section in self.sections])
