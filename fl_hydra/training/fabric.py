"""Communication: the only code that knows which process holds which rows, and the ledger of what was sent."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Traffic:
    """What has been sent so far: payload bytes towards the server or the average, payload bytes back, and messages."""

    bytes_up: int = 0
    bytes_down: int = 0
    messages: int = 0


class Fabric:
    """Reductions within a run, over rows that one process holds.

    Args:
        runs: how many runs train together.
        remote: whether a single row, too, is far from its model (a client), or is where the model is (a lone worker).
    """

    def __init__(self, runs: int, remote: bool) -> None:
        self.traffic = Traffic()
        self._runs = runs
        self._remote = remote

    def _sent(self, rows: Tensor) -> tuple[int, int]:
        if not self._remote and len(rows) == self._runs:
            return 0, 0
        return rows.numel() * rows.element_size(), len(rows)

    def broadcast(self, models: Tensor, run: Tensor) -> Tensor:
        """Send each row its run's model: models [runs, P], run int64 [rows] -> [rows, P], perhaps without a copy."""
        rows = models.expand(len(run), -1) if self._runs == 1 else models.index_select(0, run)
        sent, messages = self._sent(rows)
        self.traffic.bytes_down += sent
        self.traffic.messages += messages
        return rows

    def count_up(self, values: Tensor) -> None:
        """Enter in the ledger that rows [rows, P] were sent to be averaged."""
        sent, messages = self._sent(values)
        self.traffic.bytes_up += sent
        self.traffic.messages += messages

    def mean(self, values: Tensor, weights: Tensor, run: Tensor) -> Tensor:
        """The weighted mean within each run: values [rows, P], weights [rows] summing to 1 in a run -> [runs, P]."""
        self.count_up(values)
        if self._runs == 1:
            return (weights @ values)[None]
        mixing = torch.zeros(self._runs, len(values), dtype=values.dtype, device=values.device)
        return mixing.index_put_((run, torch.arange(len(run), device=run.device)), weights) @ values
