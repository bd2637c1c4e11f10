"""Rows whose models have one architecture: how their parameters lie, what computes their gradients, and the memory they train in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fl_hydra.optim.base import Optimizer, SlotWidth
from fl_hydra.training.architecture import Architecture
from fl_hydra.training.engine_selection import ENGINES
from fl_hydra.training.engines import out_of_memory
from fl_hydra.training.experiment import Experiment
from fl_hydra.training.layout import initial_vector
from fl_hydra.training.memory import rows_that_fit, samples_that_fit
from fl_hydra.training.precision import Precision
from fl_hydra.training.rows import METER_WIDTH
from fl_hydra.training.sample_cost import sample_flops
from fl_hydra.training.threads import single_threaded_pool


@dataclass(frozen=True)
class Block:
    """Neighbouring rows of one run that take their local steps together. index: its position among the blocks of the run."""

    run: int
    rows: slice
    index: int

    @property
    def size(self) -> int:
        """How many rows there are."""
        return int(self.rows.stop - self.rows.start)


@dataclass(frozen=True)
class Lane:
    """Where a block of rows is trained: parameters [rows, P], and the optimizer's slots that are fresh in each round."""

    parameters: Tensor
    slots: dict[str, Tensor]


@dataclass(frozen=True)
class Division:
    """How the rows of all runs are divided.

    counts: rows of each run. sections: where they lie. blocks: of each run. threads: how many share the blocks of each run.
    branches: blocks that are trained side by side as branches of a graph.
    """

    counts: list[int]
    sections: list[slice]
    blocks: list[list[Block]]
    threads: list[int]
    branches: int

    @property
    def lanes(self) -> int:
        """Blocks that train at the same time, at most."""
        return max(self.branches, *self.threads)


@dataclass(frozen=True)
class RowBuffers:
    """Fixed memory of rounds with so many rows; nothing of it is rebound within one, so that graphs can be recorded.

    ends: what rows come to. Where only their mean is needed, a weighted sum for each thread and run [threads, runs, P], else [rows, P].
    client_slots: of each row's client, by name. meter: [rows, 3 or 4], what each row's batches have shown in the round.
    squared_displacement: [rows, 1], of each row's end from its start, where it is measured. hyper: of each row's optimizer, by name,
    [rows, 1].
    """

    lanes: list[Lane]
    ends: Tensor
    client_slots: dict[str, Tensor]
    meter: Tensor
    squared_displacement: Tensor
    hyper: dict[str, Tensor]


class RowGroup:
    """The rows of all runs in a trainer.

    Args:
        experiment: the first run, with which all others have the architecture, the precision and the sizes of steps in common.
        architecture: of its model.
        engine: one of :data:`fl_hydra.training.engine_selection.ENGINES`.
        precision: of rows and of computing.
        device: where.
        rows_at_once, samples_at_once: see :class:`fl_hydra.training.trainer.Trainer`.
        notify: is told, in one line, what the user should know.
    """

    def __init__(
        self,
        experiment: Experiment,
        architecture: Architecture,
        engine: str,
        precision: Precision,
        device: torch.device,
        rows_at_once: int | None,
        samples_at_once: int | None,
        notify: Callable[[str], None],
    ) -> None:
        self._experiment, self._notify = experiment, notify
        self.device, self.dtype = device, precision.master
        self.architecture, self.layout, self.layers = architecture, architecture.layout, architecture.layout.layers
        gradients, launcher = ENGINES[engine]
        self.engine = gradients(architecture.module, self.layout, precision, device, notify)
        self.launcher = launcher()
        fit = samples_at_once or samples_that_fit(device, 2 * architecture.sample_bytes, experiment.batch_size, notify)
        self.engine.samples_at_once = min(self.engine.samples_at_once, fit)
        self._limit = rows_at_once
        self.rows_at_once = rows_at_once or 0
        """Rows of a block, at most."""
        algorithm, optimizer = experiment.algorithm, experiment.optimizer
        kept = {**(optimizer.slots if algorithm.keeps_optimizer else {}), **algorithm.client_slots}
        self.client_widths = self._widths(kept)
        """Numbers that each client keeps, by name."""
        self._fresh = self._widths({name: width for name, width in optimizer.slots.items() if name not in kept})
        self.pool: ThreadPoolExecutor | None = None
        """Of the threads that share blocks, where there are several."""
        self.division: Division
        self.buffers: RowBuffers

    def _widths(self, slots: dict[str, SlotWidth]) -> dict[str, int]:
        return {name: self.layout.size if width == "row" else 1 for name, width in slots.items()}

    def initial(self, seeds: Sequence[int]) -> Tensor:
        """Initial models of these seeds, [seeds, P]."""
        return torch.stack([initial_vector(self.architecture.build, seed, self.dtype) for seed in seeds]).to(self.device)

    @property
    def payload(self) -> int:
        """Bytes of a model."""
        return self.layout.size * self.dtype.itemsize

    @cached_property
    def sample_flops(self) -> int:
        """Floating-point operations of one sample's forward and backward pass. The first counting in a process takes a second."""
        return sample_flops(self.architecture.build(), self._experiment.dataset_info)

    @cached_property
    def forward_flops(self) -> int:
        """Floating-point operations of one sample's forward pass alone."""
        return sample_flops(self.architecture.build(), self._experiment.dataset_info, backward=False)

    @property
    def samples_at_once(self) -> int:
        """Samples of a batch whose gradient is taken at once; larger batches are accumulated."""
        return min(self._experiment.batch_size, self.engine.samples_at_once)

    def allocate(self, counts: list[int], optimizers: Sequence[Optimizer]) -> None:
        """Memory for rounds with so many rows of each run, which step by these optimizers; fewer rows at once where it runs out."""
        e, most = self._experiment, max(counts)
        vectors = 4 + len(self._fresh)  # parameters, their gradient twice over, an intermediate of the optimizer, slots
        row_bytes = vectors * self.layout.size * self.dtype.itemsize + 2 * self.samples_at_once * self.architecture.sample_bytes
        self.rows_at_once = self._limit or rows_that_fit(self.device, row_bytes, most, self._notify)
        while True:
            self.division = self._divide(counts, together=e.algorithm.coupled or e.algorithm.event_driven)
            try:
                self.buffers = self._make_buffers(optimizers)
                break
            except RuntimeError as error:
                if not out_of_memory(error) or self.rows_at_once == 1:
                    raise
                self.rows_at_once = self._limit = -(-min(self.rows_at_once, most) // 2)
                self._notify(f"the rows of a round do not fit into memory together; going on with {self.rows_at_once} at once")
        self.engine.bind([lane.parameters for lane in self.buffers.lanes])
        self.launcher.forget()
        if self.pool is not None:
            self.pool.shutdown(wait=False)
        threads = max(self.division.threads)
        self.pool = single_threaded_pool(threads) if threads > 1 else None

    def _divide(self, counts: list[int], together: bool) -> Division:
        """together: whether all rows of a run take each step together."""
        sections = [slice(stop - count, stop) for count, stop in zip(counts, np.cumsum(counts).tolist(), strict=True)]
        blocks = [
            [
                Block(run, slice(section.start + part.start, section.start + part.stop), index)
                for index, part in enumerate([slice(0, count)] if together else self.engine.blocks(count, self.rows_at_once))
            ]
            for run, (section, count) in enumerate(zip(sections, counts, strict=True))
        ]
        size = self._experiment.batch_size
        threads = [min(self.engine.threads(count, size), len(own)) for count, own in zip(counts, blocks, strict=True)]
        branches = min(self.engine.branches, sum(map(len, blocks))) if self.launcher.replays else 1
        return Division(counts, sections, blocks, threads, branches)

    def _make_buffers(self, optimizers: Sequence[Optimizer]) -> RowBuffers:
        division, size = self.division, self.layout.size
        total, block = sum(division.counts), max(block.size for own in division.blocks for block in own)
        lanes = [
            Lane(self.zeros(block, size), {name: self.zeros(block, width) for name, width in self._fresh.items()})
            for _ in range(division.lanes)
        ]
        if self._experiment.algorithm.needs_ends:
            ends = self.zeros(total, size)
        else:
            ends = torch.zeros(max(division.threads), len(division.counts), size, dtype=self.dtype, device=self.device)
        of_rows = [optimizer for optimizer, count in zip(optimizers, division.counts, strict=True) for _ in range(count)]
        return RowBuffers(
            lanes,
            ends,
            {name: self.zeros(total, width) for name, width in self.client_widths.items()},
            self.zeros(total, METER_WIDTH + self.engine.squares),
            self.zeros(total, 1),
            self.hyper(of_rows),
        )

    def hyper(self, rules: Sequence[Optimizer]) -> dict[str, Tensor]:
        """Hyper-parameters of optimizers by name, [rules, 1]."""
        values = [rule.hyper for rule in rules]
        return {name: torch.tensor([[each[name]] for each in values], dtype=self.dtype, device=self.device) for name in values[0]}

    def zeros(self, rows: int, width: int) -> Tensor:
        """A buffer [rows, width]."""
        return torch.zeros(rows, width, dtype=self.dtype, device=self.device)
