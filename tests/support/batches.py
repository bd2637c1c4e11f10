"""Methods that note the batches that they are given."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from fl_hydra.algorithms.base import Algorithm
from fl_hydra.seams.rows import Batch, Gradient, Rows


class NotesBatches(Algorithm):
    """To be put before a method: notes the first batch of each of its steps."""

    @cached_property
    def batches(self) -> list[Batch]:
        """In the order of the steps."""
        return []

    def step(self, rows: Rows, gradient: Gradient, batches: Sequence[Batch], j: int) -> None:
        self.batches.append(batches[0])
        super().step(rows, gradient, batches, j)
