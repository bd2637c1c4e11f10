"""Rows whose models have one architecture: the layout of their parameters, the engine of their gradients, and the memory they train in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from fl_hydra.algorithms.base import Algorithm, State
from fl_hydra.arrays import Indices
from fl_hydra.errors import require
from fl_hydra.optim.base import Optimizer
from fl_hydra.seams.architectures import Architectures
from fl_hydra.seams.clients import Facts
from fl_hydra.seams.layout import Columns, flat, frozen_tensors, initial_module, running_statistics
from fl_hydra.seams.rows import METER_WIDTH, LocalOptimizer, Rows, counter
from fl_hydra.training.architecture import Architecture
from fl_hydra.training.client_store import ClientStore
from fl_hydra.training.engine_selection import ENGINES
from fl_hydra.training.engines import check_batch
from fl_hydra.training.experiment import Experiment
from fl_hydra.training.memory import out_of_memory, rows_that_fit, samples_that_fit, usual_samples
from fl_hydra.training.precision import Precision
from fl_hydra.training.sample_cost import product_flops, sample_flops
from fl_hydra.training.threads import single_threaded_pool

T = TypeVar("T")


@dataclass(frozen=True)
class Block:
    """Neighbouring rows of one run that take their local steps together. index: its position among the blocks of the run."""

    run: int
    rows: slice
    index: int

    @property
    def size(self) -> int:
        """The number of rows."""
        return int(self.rows.stop - self.rows.start)


@dataclass(frozen=True)
class Lane:
    """Where a block of rows is trained: parameters [rows, P], and the optimizer's slots that are fresh in each round.

    starts: [rows, P], used when clients insert personal parameters into the model they are sent; else None.
    """

    parameters: Tensor
    slots: dict[str, Tensor]
    starts: Tensor | None


@dataclass(frozen=True)
class Division:
    """How the rows of all runs are divided.

    counts: rows of each run. sections: their positions. blocks: of each run. threads: how many share each run's blocks.
    branches: blocks that are trained in parallel as branches of a graph.
    """

    counts: list[int]
    sections: list[slice]
    blocks: list[list[Block]]
    threads: list[int]
    branches: int

    @property
    def lanes(self) -> int:
        """The most blocks that train at the same time."""
        return max(self.branches, *self.threads)


@dataclass(frozen=True)
class RowBuffers:
    """Fixed memory for rounds with a given number of rows; it is never rebound, so that graphs can be recorded.

    ends: rows after their local steps, [rows, P]; if only their mean is needed, a weighted sum for each thread and run, [threads,
    runs, P].
    own_ends: the same rows before an uplink encoded them, [rows, P]; None if there is no uplink, or only their mean is needed.
    kept: state of each row's client by name (:data:`STATE`, ...), [rows, width]. meter: [rows, 3 or 4], figures summed over each row's
    batches in the round. squared_displacement: [rows, 1], squared distance of each row's end from its start, if it is measured.
    hyper: of each row's optimizer, by name, [rows, 1]. own_hyper: the method's own. facts: what is known of each row's client, by name,
    [rows, width]. received: what the server sent each row besides the model, by name, [rows, width]; allocated when it is first sent.
    statistics: running statistics of each row's model, [rows, size]; None if there are none.
    """

    lanes: list[Lane]
    ends: Tensor
    kept: dict[str, Tensor]
    meter: Tensor
    squared_displacement: Tensor
    hyper: dict[str, Tensor]
    own_hyper: dict[str, Tensor]
    facts: dict[str, Tensor]
    received: dict[str, Tensor]
    statistics: Tensor | None = None
    own_ends: Tensor | None = None


STATE, UPLINK, PERSONAL, PERSONAL_STATISTICS = "state.", "uplink.", "personal", "personal_statistics"
"""Names of what a client keeps: prefixes of the method's own state and of the uplink's state (followed by the message's name), its personal
parameters, and their running statistics. Its optimizer's slots have none of these prefixes."""


@dataclass(frozen=True)
class RowsOf:
    """The buffers of some rows, by name, [rows, width]: see :class:`RowBuffers`."""

    kept: dict[str, Tensor]
    hyper: dict[str, Tensor]
    own_hyper: dict[str, Tensor]
    facts: dict[str, Tensor]
    received: dict[str, Tensor]


@dataclass(frozen=True)
class SlotNames:
    """The names of the optimizer's slots in memory.

    of: for each vector that is stepped ("": the parameters), by the optimizer's own name. widths: numbers per row, by name.
    """

    of: dict[str, dict[str, str]]
    widths: dict[str, int]

    @classmethod
    def made(cls, optimizer: Optimizer, vectors: Mapping[str, int], columns: Sequence[str]) -> SlotNames:
        """The names of an optimizer's slots for these vectors, of so many numbers, whose named `columns` are stepped separately."""
        of: dict[str, dict[str, str]] = {}
        widths: dict[str, int] = {}
        for vector, size in vectors.items():
            own = of[vector] = {}
            for name, width in optimizer.slots.items():
                for slot in (name,) if width == "row" else (name, *(counter(name, each) for each in columns)):
                    own[slot] = f"of.{vector}.{slot}" if vector else slot
                    widths[own[slot]] = size if width == "row" else 1
        return cls(of, widths)


class RowGroup:
    """The rows of all runs in a trainer.

    Args:
        experiment: the first run; all others share its architecture, precision and step sizes.
        architecture: of its model.
        engine: one of :data:`fl_hydra.training.engine_selection.ENGINES`.
        precision: of rows and of computation.
        device: where.
        rows_at_once, samples_at_once: see :class:`fl_hydra.training.trainer.Trainer`.
        notify: is told, in one line, what the user should know.
        number: of the architecture among those of the runs' clients, `architectures`.
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
        architectures: Architectures,
        number: int = 0,
    ) -> None:
        self._experiment, self._notify = experiment, notify
        self._architectures, self.number = architectures, number
        self.device, self.dtype = device, precision.master
        self.architecture, self.layout, self.layers = architecture, architecture.layout, architecture.layout.layers
        gradients, launcher = ENGINES[engine]
        self.engine = gradients(architecture.module, self.layout, precision, device, notify)
        self.launcher = launcher()
        bytes_each = 2 * architecture.sample_bytes
        fit = samples_at_once or samples_that_fit(device, bytes_each, experiment.batch_size, notify)
        if samples_at_once == experiment.batch_size:  # whole batches, which says nothing of passes over more samples
            fit = max(fit, usual_samples(device, bytes_each))
        self.engine.samples_at_once = min(self.engine.samples_at_once, fit)
        check_batch(self.layout, experiment.batch_size, self.engine.samples_at_once)
        require(
            experiment.batch_size >= architecture.least_batch,
            f"batch_size={experiment.batch_size}: a BatchNorm of the model takes variances of one number of each sample; choose "
            f"batch_size={architecture.least_batch} or more",
        )
        self._limit = rows_at_once
        self.rows_at_once = rows_at_once or 0
        """The most rows in a block."""
        algorithm, optimizer = experiment.algorithm, experiment.optimizer
        self.personal = algorithm.personal(self.layout)
        """Columns of the parameters that stay with their client."""
        unsent = {*self.personal.names, *algorithm.untrained(self.layout).names}
        self.unsent = self.layout.columns(lambda name, module: name in unsent)
        """Columns of the parameters that are not sent: these, and those that are not trained."""
        self.shared = self.layout.others(self.unsent)
        """All others."""
        everything = self.layout.columns(lambda name, module: True)
        model = architecture.model
        local = model.statistics == "local"
        self.personal_statistics: Columns = self.layout.statistics_beside(everything if local else self.personal)
        """Columns of the running statistics that stay with their client."""
        self.statistics_known = model.statistics == "frozen" and not model.frozen_after
        """Whether running statistics are what they were in the beginning, and are not sent."""
        self.columns = algorithm.columns(self.layout)
        """Columns that the method steps separately, by name."""
        self._stepped = algorithm.stepped_columns(self.layout)
        widths = {name: self._stepped[name].width if name in self._stepped else self.layout.size for name in ("", *algorithm.stepped)}
        self._slots = SlotNames.made(optimizer, widths, tuple(self.columns))
        self._fresh = {} if algorithm.keeps_optimizer else self._slots.widths
        self.kept_slots = self._slots.widths if algorithm.keeps_optimizer else {}
        """Numbers of the optimizer's slots that each client keeps, by name."""
        self.kept_widths: dict[str, int] = dict(self.kept_slots)
        """Numbers that each client keeps, by name, including the method's own state and personal parameters."""
        self.pool: ThreadPoolExecutor | None = None
        """Threads that share blocks, if there are several."""
        self.division: Division
        self.buffers: RowBuffers

    def initial(self, seeds: Sequence[int]) -> tuple[Tensor, dict[str, Tensor]]:
        """Initial models of these seeds, [seeds, P], and their other tensors (:attr:`State.buffers`)."""
        modules = [initial_module(self.architecture.build, seed) for seed in seeds]
        models = [dict(module.named_parameters()) for module in modules]
        buffers = {}
        if self.layout.statistics.names:
            buffers["model"] = self._stacked([list(running_statistics(module).values()) for module in modules])
        if self.layout.frozen.names:
            buffers["frozen"] = self._stacked([list(frozen_tensors(module).values()) for module in modules])
        return self._stacked([[named[name] for name in self.layout.names] for named in models]), buffers

    def _stacked(self, models: Sequence[Sequence[Tensor]]) -> Tensor:
        """Tensors of several models, each as a vector."""
        return torch.stack([flat(tensor.detach().to("cpu", self.dtype) for tensor in tensors) for tensors in models]).to(self.device)

    def buffers_of_runs(self, buffers: dict[str, Tensor], workers: int) -> dict[str, Tensor]:
        """Initial tensors of models besides their parameters; also for each run's `workers`, if these have their own models."""
        if "model" not in buffers or self._experiment.algorithm.ends_with_mean:
            return buffers
        return buffers | {"workers": buffers["model"][:, None].repeat(1, workers, 1)}

    def whole(self, models: Tensor, state: State, statistics: Tensor | None = None) -> Tensor:
        """Models [models, P] of a run and their other tensors: running statistics (the run's or others, [models, size]), frozen ones."""
        frozen = state.buffers["frozen"][0] if "frozen" in state.buffers else None
        return self.layout.whole(models, state.buffers.get("model") if statistics is None else statistics, frozen)

    def client_statistics(self, state: State, clients: ClientStore, ids: Indices) -> Tensor | None:
        """Running statistics of some clients of a run, int64 [n]: the server's, except those that stay with clients. [n, size], in new
        memory; None if models have none."""
        if "model" not in state.buffers:
            return None
        statistics = state.buffers["model"].repeat(len(ids), 1)
        if self.personal_statistics.width:
            self.personal_statistics.write(statistics, clients.read(ids, PERSONAL_STATISTICS))
        return statistics

    @property
    def payload(self) -> int:
        """Bytes of a model as it is sent."""
        statistics = 0 if self.statistics_known else self.layout.statistics.size - self.personal_statistics.width
        return (self.layout.size - self.unsent.width + statistics) * self.dtype.itemsize

    def client_state(self, e: Experiment, models: Tensor, statistics: Tensor | None, facts: Facts) -> dict[str, Tensor]:
        """Initial values of what each client of a run carries, by name, [1 or K, width], from its experiment, initial model [1, P] and
        running statistics [1, size]."""
        named = {f"{STATE}{name}": values for name, values in e.algorithm.client_state(models, facts).items()}
        if self.personal.width:
            named[PERSONAL] = self.personal.of(models).clone()
        if self.personal_statistics.width and statistics is not None:
            named[PERSONAL_STATISTICS] = self.personal_statistics.of(statistics).clone()
        size = self.layout.size
        for message in ("", *e.algorithm.messages):
            named |= {
                f"{UPLINK}{message}.{name}": models.new_zeros(1, size if width == "row" else 1) for name, width in e.uplink.slots.items()
            }
        named |= {name: models.new_zeros(1, width) for name, width in self.kept_slots.items()}
        self.kept_widths = {name: values.shape[1] for name, values in named.items()}
        return named

    def rows(self, lane: Lane, parameters: Tensor, starts: Tensor, lr: Tensor, rule: Optimizer, of: RowsOf, J: int = 0) -> Rows:
        """Rows in training.

        Args:
            lane: whose fresh slots they use. parameters, starts: [rows, P]. lr: [rows, steps]. rule: of the local optimizer.
            of: the buffers of these rows. J: local steps of the round as the rule chose them.
        """
        count = len(parameters)
        slots = of.kept if not self._fresh else {name: slot[:count] for name, slot in lane.slots.items()}
        local = LocalOptimizer(
            rule,
            self.layers,
            of.hyper,
            {vector: {name: slots[place] for name, place in names.items()} for vector, names in self._slots.of.items()},
            self.columns,
            self._stepped,
        )
        state = {name.removeprefix(STATE): values for name, values in of.kept.items() if name.startswith(STATE)}
        return Rows(parameters, starts, lr, local, state, of.received, of.facts, of.own_hyper, J, self._architectures)

    def of_rows(self, rows: slice, run: int) -> RowsOf:
        """The buffers of some rows of a run."""
        buffers = self.buffers
        named = (buffers.kept, buffers.hyper, buffers.own_hyper, buffers.facts, buffers.received)
        return RowsOf(*({name: values[rows] for name, values in part.items()} for part in named))

    def receive(self, name: str, rows: slice, values: Tensor) -> None:
        """Store what the server sent some rows of a run besides the model, [1, width] or [rows, width]."""
        if name not in self.buffers.received:
            self.buffers.received[name] = self.zeros(len(self.buffers.meter), values.shape[1])
        self.buffers.received[name][rows].copy_(values)

    @cached_property
    def sample_flops(self) -> int:
        """Floating-point operations of one sample's forward and backward pass. The first count in a process takes a second."""
        return sample_flops(self._counted(), self._experiment.dataset_info)

    @cached_property
    def forward_flops(self) -> int:
        """Floating-point operations of one sample's forward pass alone."""
        return sample_flops(self._counted(), self._experiment.dataset_info, backward=False)

    @cached_property
    def product_flops(self) -> int:
        """Floating-point operations of one sample's product with the Hessian."""
        return product_flops(self._counted(), self._experiment.dataset_info)

    def _counted(self) -> nn.Module:
        """A module for counting the operations of one sample, of which BatchNorm in training could take no statistics."""
        module = self.architecture.build()
        return module.eval() if self.layout.statistics.names else module

    def flops(self, gradients: int, forwards: int, products: int) -> int:
        """Floating-point operations for these numbers of samples of gradients, forward passes alone, and products with the Hessian."""
        total = self.sample_flops * gradients
        total += self.forward_flops * forwards if forwards else 0
        return total + (self.product_flops * products if products else 0)

    @property
    def samples_at_once(self) -> int:
        """Samples of a batch whose gradient is computed at once; larger batches are accumulated."""
        return min(self._experiment.batch_size, self.engine.samples_at_once)

    def allocate(self, counts: list[int], optimizers: Sequence[Optimizer], algorithms: Sequence[Algorithm]) -> None:
        """Allocate memory for rounds with `counts` rows of each run, its optimizer and method; fewer rows at once if it runs out."""
        most = max(counts)
        # Parameters, two copies of their gradient, an intermediate of the optimizer, its slots, and starts with personal parameters.
        vectors = 4 + len(self._fresh) + bool(self.personal.width)
        row_bytes = vectors * self.layout.size * self.dtype.itemsize + 2 * self.samples_at_once * self.architecture.sample_bytes
        self.rows_at_once = self._limit or rows_that_fit(self.device, row_bytes, most, self._notify)
        while True:
            self.division = self._divide(counts)
            try:
                self.buffers = self._make_buffers(optimizers, algorithms)
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

    def limit(self, rows: int, samples: int) -> bool:
        """Compute at most so many rows, and samples of a row, at once; whether that is fewer rows than before."""
        self.engine.samples_at_once = samples if samples < self.samples_at_once else self.engine.samples_at_once
        fewer = rows < self.rows_at_once
        self._limit = rows if fewer else self._limit
        return fewer

    def resize(self, counts: list[int], optimizers: Sequence[Optimizer], algorithms: Sequence[Algorithm]) -> bool:
        """Divide the allocated memory among other numbers of rows of the same runs, so that recorded graphs can still be used.

        Returns:
            whether it is enough for them; if not, nothing changes.
        """
        division, lanes = self._divide(counts), self.buffers.lanes
        rows = max((block.size for own in division.blocks for block in own), default=0)
        threads = max(division.threads)
        enough = sum(counts) <= len(self.buffers.meter) and rows <= len(lanes[0].parameters) and division.lanes <= len(lanes)
        if not enough or threads > max(self.division.threads):
            return False
        self.division = division
        if not sum(counts):
            return True
        for places, values in (
            (self.buffers.hyper, self.hyper(_by_row(optimizers, counts))),
            (self.buffers.own_hyper, self.own_hyper(_by_row(algorithms, counts))),
        ):
            for name, place in places.items():
                place[: sum(counts)].copy_(values[name])
        return True

    def _divide(self, counts: list[int]) -> Division:
        together = (
            self._experiment.algorithm.coupled or self._experiment.algorithm.event_driven
        )  # all rows of a run take each step together
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

    def _make_buffers(self, optimizers: Sequence[Optimizer], algorithms: Sequence[Algorithm]) -> RowBuffers:
        division, size = self.division, self.layout.size
        total, block = sum(division.counts), max(block.size for own in division.blocks for block in own)
        lanes = [
            Lane(
                self.zeros(block, size),
                {name: self.zeros(block, width) for name, width in self._fresh.items()},
                self.zeros(block, size) if self.personal.width else None,
            )
            for _ in range(division.lanes)
        ]
        if self._experiment.algorithm.needs_ends:
            ends = self.zeros(total, size)
        else:
            ends = torch.zeros(max(division.threads), len(division.counts), size, dtype=self.dtype, device=self.device)
        return RowBuffers(
            lanes,
            ends,
            {name: self.zeros(total, width) for name, width in self.kept_widths.items()},
            self.zeros(total, METER_WIDTH + self.engine.squares),
            self.zeros(total, 1),
            self.hyper(_by_row(optimizers, division.counts)),
            self.own_hyper(_by_row(algorithms, division.counts)),
            {name: self.zeros(total, width) for name, width in self._fact_widths().items()},
            {},
            self.zeros(total, self.layout.statistics.size) if self.layout.statistics.names else None,
            None if self._experiment.uplink.bypassed or not self._experiment.algorithm.needs_ends else self.zeros(total, size),
        )

    def _fact_widths(self) -> dict[str, int]:
        widths = {"sizes": 1, "rates": 1, "label_counts": self._experiment.dataset_info.classes}
        return {name: widths[name] for name in self._experiment.algorithm.row_facts}

    def own_hyper(self, algorithms: Sequence[Algorithm]) -> dict[str, Tensor]:
        """Hyper-parameters of methods by name, [algorithms, 1]."""
        values = {name: [[getattr(each, name)] for each in algorithms] for name in self._experiment.algorithm.hyper}
        return {name: torch.tensor(column, dtype=self.dtype, device=self.device) for name, column in values.items()}

    def hyper(self, rules: Sequence[Optimizer]) -> dict[str, Tensor]:
        """Hyper-parameters of optimizers by name, [rules, 1]."""
        values = [rule.hyper for rule in rules]
        return {name: torch.tensor([[each[name]] for each in values], dtype=self.dtype, device=self.device) for name in values[0]}

    def zeros(self, rows: int, width: int) -> Tensor:
        """A buffer [rows, width]."""
        return torch.zeros(rows, width, dtype=self.dtype, device=self.device)


def _by_row(of_runs: Sequence[T], counts: list[int]) -> list[T]:
    """Each run's item, once for each of its rows."""
    return [each for each, count in zip(of_runs, counts, strict=True) for _ in range(count)]
