"""The one loop.

Every method, centralized training included, is rounds of: choose participants, give each row its start, J local steps,
communicate, outer step. Nothing in a round is read back to the host, but the state of clients that leave the cohort, where a
method has such state, and what a rule for the number of local steps or a participation scheme measures, where it does.

A trainer holds one run, or several that train together ("packed"): their rows lie side by side, and the rows of a run are
neighbours. Not one bit of a run depends on the others. A block of rows belongs to one run, sums are taken run by run in an order of the
run's own, a method's seams see one run at a time, and how many threads train a row, or how many rows make a block, follows from the run
alone. So runs may join a pack at any round, and leave it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fl_hydra.algorithms.base import Algorithm, State
from fl_hydra.algorithms.events import EventDriven, WorkersState
from fl_hydra.arrays import Indices, Reals
from fl_hydra.devices import computes_in, free_memory, keep_freed_memory, to_device, total_memory
from fl_hydra.errors import require
from fl_hydra.local_steps.base import Measured
from fl_hydra.optim.base import Optimizer
from fl_hydra.training.architecture import check_architecture
from fl_hydra.training.choice import ENGINES, candidates, fastest
from fl_hydra.training.clients import ClientStore
from fl_hydra.training.cost import sample_bytes, sample_flops
from fl_hydra.training.draws import Draws
from fl_hydra.training.engines import out_of_memory
from fl_hydra.training.experiment import Experiment
from fl_hydra.training.fabric import Fabric, Traffic
from fl_hydra.training.graphs import Tensors
from fl_hydra.training.layout import Layout, initial_vector
from fl_hydra.training.member import Member, Plan
from fl_hydra.training.noise import NoiseScale
from fl_hydra.training.precision import PRECISIONS
from fl_hydra.training.rows import METER, Clients, Gradient, Rows, Server
from fl_hydra.training.split import load_split
from fl_hydra.training.threads import single_threaded_pool

Metrics = dict[str, float | int | None]
"""One line of metrics.jsonl; None where a number is not finite or there is no such set."""

GRAPH_STEPS = 64
"""Local steps that are recorded in one graph; a longer round is several of them."""


@dataclass(frozen=True)
class _Place:
    """Where a block of rows is trained: parameters [rows, P] and slots that are fresh in each round."""

    parameters: Tensor
    slots: dict[str, Tensor]


@dataclass(frozen=True)
class _Block:
    """Neighbouring rows of one run that take their local steps together. index: its place among the blocks of the run."""

    run: int
    rows: slice
    index: int


@dataclass(frozen=True)
class _Turn:
    """A run's part in a round.

    section: its rows. state: what it carries, [1, ...], the trainer's own memory. clients: its cohort, with its rows' weights.
    cut: whether some row has fewer samples than its batches hold. exchanges: after which of its local steps rows exchange models.
    reports: how many rows do not drop out. lost: the others. kept: of these, where client state lies, and what it was before the round.
    """

    plan: Plan
    section: slice
    state: State
    clients: Clients
    cut: bool
    exchanges: tuple[bool, ...]
    reports: int
    lost: frozenset[int]
    kept: list[tuple[Tensor, Tensor]]

    def put_back(self) -> None:
        """A client that drops out has lost its round: its state is that before it."""
        for place, before in self.kept:
            place.copy_(before)


@dataclass(frozen=True)
class _Work:
    """A round's local steps. Tensors have a row for each local worker, and are as long as the longest run needs them.

    tensors: what differs from round to round: `indices` [rows, batches, B], `streams`, `cursors`, `lr` [rows, steps or more], and, where
    there are such, sample weights `counting` [rows, batches, B], `starts` [rows, P] and `mixing` [rows, steps, rows of a run].
    counts: int64 [rows, batches], samples that count. asked: like counts, gradients asked for. turns: of the runs.
    """

    tensors: Tensors
    counts: Indices
    asked: Indices
    turns: list[_Turn]


CPU_BLOCK_BYTES = 2**32
"""Memory that the rows of a block may take on a CPU. A constant, as what is free at a start would decide the last bits of a run."""

GPU_BLOCK_PART = 0.6
"""The part of a GPU's memory, free or not, that they may take there."""


class Trainer:
    """One run, or several that train together, in memory.

    Args:
        experiments: what to train; several must be alike as :func:`fl_hydra.training.packing.shape` says.
        engine: one of :data:`fl_hydra.training.choice.ENGINES`, or `auto`.
        device: where.
        client_folders: where state that belongs to clients is written, for each run; None keeps it in memory.
        rows_at_once, samples_at_once: rows of a run that are trained in one block, and samples of a batch whose gradient is taken at
            once; None: a function of the configuration, fewer where memory is short. They decide a run's last bits.
        notify: is told, in one line, what the user should know.

    Raises:
        UserError: the model does not fit the images, or the shards cannot be made.
    """

    def __init__(
        self,
        *experiments: Experiment,
        engine: str = "auto",
        device: str = "cpu",
        client_folders: Sequence[Path] | None = None,
        rows_at_once: int | None = None,
        samples_at_once: int | None = None,
        notify: Callable[[str], None] = lambda line: None,
    ) -> None:
        first = self._first = experiments[0]
        self.device = torch.device(device)
        if self.device.type == "cpu":
            keep_freed_memory()
        else:
            self.device = torch.device("cuda", torch.cuda.current_device() if self.device.index is None else self.device.index)
            torch.cuda.set_device(self.device)  # streams and graphs are made on the current device
        self.precision = PRECISIONS[first.precision]
        self.precision.configure(self.device)
        self.dtype = self.precision.master
        self._notify = notify
        if not computes_in(self.device, self.precision.compute):
            notify(f"precision={first.precision}: this CPU has no instructions for it, so that a step takes longer than in fp32, not less")

        module = self._build()
        check_architecture(module, first.card)
        self.layout = Layout.of(module)
        self._layers = self.layout.layers
        self._sample_bytes = sample_bytes(module, first.card)
        if engine == "auto":
            engine = self._choose(experiments)
        self.engine_name = engine
        gradients, launcher = ENGINES[engine]
        self.engine = gradients(module, self.layout, self.precision, self.device, notify)
        self.launcher = launcher()
        self._limit = rows_at_once
        self.rows_at_once = rows_at_once or 0
        """Rows of a block, at most."""
        self.engine.samples_at_once = min(self.engine.samples_at_once, samples_at_once or self._samples_that_fit())

        self.split = load_split(first.dataset, first.data, first.split_seed, self.precision, self.device)
        algorithm, optimizer = first.algorithm, first.optimizer
        shared = sorted(optimizer.slots.keys() & algorithm.client_slots.keys())
        require(
            not shared,
            f"algorithm={algorithm.name} and optimizer={optimizer.name} both have a slot {', '.join(shared)}: rename it in client_slots",
        )
        kept = {**(optimizer.slots if algorithm.keeps_optimizer else {}), **algorithm.client_slots}
        self._kept = {name: self.layout.size if full else 1 for name, full in kept.items()}
        self._fresh = {name: self.layout.size if full else 1 for name, full in optimizer.slots.items() if name not in kept}
        folders: Sequence[Path | None] = client_folders or [None] * len(experiments)
        self.members = [
            Member(experiment, self.split.population, ClientStore(self._kept, self.dtype, folder))
            for experiment, folder in zip(experiments, folders, strict=True)
        ]
        initial = torch.stack([initial_vector(self._build, experiment.seed, self.dtype) for experiment in experiments])
        self.state = algorithm.initial(initial.to(self.device), first.m)
        self.state.server = {
            name: self._buffer(len(experiments), self.layout.size if full else 1) for name, full in first.server.slots.items()
        }
        self._shows = frozenset[str]().union(*(member.experiment.participation.measures for member in self.members))
        """What is read back of every row after a round, for the participation scheme."""
        self.engine.squares = "root_square" in self._shows
        self._meter = torch.zeros(len(experiments), METER, dtype=torch.float64, device=self.device)
        self._measures = first.local_steps.measures
        self._noise = NoiseScale(len(experiments), self.device) if first.noise_scale else None
        self._streams = type(algorithm).update is Algorithm.update
        """Whether only the mean of the rows' ends is needed, so that it can be taken block by block."""
        self._starts_own = type(algorithm).start is not Algorithm.start
        self._abandoned = False
        """Whether a thread has failed in this round, so that the others need not finish it."""
        self._asked_much = False
        self._pool: ThreadPoolExecutor | None = None
        self._allocate([experiment.m for experiment in experiments])

    def _build(self) -> nn.Module:
        return self._first.model.build(self._first.card)

    def _choose(self, experiments: Sequence[Experiment]) -> str:
        """The engine of `auto`: by a rule, or by a few short rounds of each that may be the fastest."""
        first = self._first
        names = candidates(self.device, self.layout, self._sample_bytes * first.batch_size, self.precision, first.m)
        if len(names) == 1:
            return names[0]
        rows = sum(experiment.m for experiment in experiments)
        described = (first.model, first.card, first.batch_size, rows, first.precision, first.algorithm, first.optimizer, self.device)
        short = [replace(experiment, J=min(experiment.J or 4, 4), budget=10**12) for experiment in experiments]
        return fastest(names, lambda name: Trainer(*short, engine=name, device=str(self.device)).run_round, repr(described), self._notify)

    def _allocate(self, rows: list[int]) -> None:
        """The buffers of a round with so many rows of each run; they serve every round, and are never rebound within one."""
        self.rows_at_once = self._limit or self._rows_that_fit(max(rows))
        while True:
            try:
                self._make_buffers(rows)
                break
            except RuntimeError as error:
                if not out_of_memory(error) or self.rows_at_once == 1:
                    raise
                self.rows_at_once = self._limit = -(-min(self.rows_at_once, max(rows)) // 2)
                self._notify(f"the rows of a round do not fit into memory together; going on with {self.rows_at_once} at once")

    @property
    def _block_bytes(self) -> int:
        """What the rows of a block may take."""
        return CPU_BLOCK_BYTES if self.device.type == "cpu" else int(GPU_BLOCK_PART * total_memory(self.device))

    def _rows_that_fit(self, rows: int) -> int:
        """How many rows make a block, of up to `rows`: a function of the run and the kind of device, unless memory is short."""
        vectors = 4 + len(self._fresh)  # parameters, their gradient twice over, an intermediate of the optimizer, slots
        samples = min(self._first.batch_size, self.engine.samples_at_once)
        each = vectors * self.layout.size * self.dtype.itemsize + 2 * samples * self._sample_bytes
        usual = max(1, self._block_bytes // each)
        return self._no_more_than_free("rows of a run", usual, each, min(usual, rows), 0.75)

    def _samples_that_fit(self) -> int:
        """Of how many samples one row's gradient is taken at once: a function like that of the rows."""
        each = 2 * self._sample_bytes
        usual = max(1, self._block_bytes // (2 * each))
        return self._no_more_than_free("samples of a batch", usual, each, min(usual, self._first.batch_size), 0.5)

    def _no_more_than_free(self, what: str, usual: int, each: int, needed: int, part: float) -> int:
        """`usual`, unless `needed` of it, of `each` bytes, are more than fit into a part of the free memory; that is said."""
        free = free_memory(self.device)
        fit = usual if free is None else max(1, int(part * free / each))
        if fit >= needed:
            return usual
        self._notify(f"memory is short: {fit} {what} at once in place of {needed}; with more memory the last digits would differ")
        return fit

    @property
    def samples_at_once(self) -> int:
        """Samples of a batch whose gradient is taken at once; larger batches are accumulated."""
        return min(self._first.batch_size, self.engine.samples_at_once)

    def _make_buffers(self, rows: list[int]) -> None:
        total, first = sum(rows), self._first.algorithm
        sections = [slice(stop - count, stop) for count, stop in zip(rows, np.cumsum(rows).tolist(), strict=True)]
        together = first.coupled or isinstance(first, EventDriven)
        blocks = [
            [
                _Block(run, slice(section.start + part.start, section.start + part.stop), index)
                for index, part in enumerate([slice(0, count)] if together else self.engine.blocks(count, self.rows_at_once))
            ]
            for run, (section, count) in enumerate(zip(sections, rows, strict=True))
        ]
        self._sections, self._blocks = sections, blocks
        size = max(block.rows.stop - block.rows.start for own in blocks for block in own)
        self._threads = [min(self.engine.threads(count, self._first.batch_size), len(own)) for count, own in zip(rows, blocks, strict=True)]
        """How many threads share the blocks of each run."""
        branches = min(self.engine.branches, sum(len(own) for own in blocks)) if self.launcher.replays else 1
        self._places = [
            _Place(self._buffer(size, self.layout.size), {name: self._buffer(size, width) for name, width in self._fresh.items()})
            for _ in range(max(branches, *self._threads))
        ]
        self._branches = branches
        """Blocks that are trained side by side as branches of a graph."""
        self._rows = rows
        self._run_of_row = [run for run, count in enumerate(rows) for _ in range(count)]
        if self._streams:  # a sum for each thread and run
            self._ends = torch.zeros(max(self._threads), len(rows), self.layout.size, dtype=self.dtype, device=self.device)
        else:
            self._ends = self._buffer(total, self.layout.size)
        self._client_slots = {name: self._buffer(total, width) for name, width in self._kept.items()}
        self._row_meter = self._buffer(total, METER + self.engine.squares)
        self._row_travel = self._buffer(total, 1)
        """How far each row has moved, squared, where a rule for local steps or a participation scheme wants to know."""
        self._hyper = self._hyper_parameters([self.members[run].experiment.optimizer for run in self._run_of_row])
        outer = [member.experiment.server for member in self.members]
        self._server_hyper = self._hyper_parameters(outer)
        self._server_lr = torch.tensor([[rule.lr] for rule in outer], dtype=self.dtype, device=self.device)
        if self._noise is not None:
            self._noise.allocate(len(self._places), rows, self.layout.size, self.dtype)
        self.engine.bind([place.parameters for place in self._places])
        self.launcher.forget()
        if self._pool is not None:
            self._pool.shutdown(wait=False)
        self._pool = single_threaded_pool(max(self._threads)) if max(self._threads) > 1 else None

    def _hyper_parameters(self, rules: Sequence[Optimizer]) -> dict[str, Tensor]:
        """Hyper-parameters by name, [rules, 1]."""
        values = [rule.hyper for rule in rules]
        return {name: torch.tensor([[each[name]] for each in values], dtype=self.dtype, device=self.device) for name in values[0]}

    def _buffer(self, rows: int, width: int) -> Tensor:
        return torch.zeros(rows, width, dtype=self.dtype, device=self.device)

    @property
    def _payload(self) -> int:
        """Bytes of a model."""
        return self.layout.size * self.dtype.itemsize

    @cached_property
    def sample_flops(self) -> int:
        """Floating-point operations of one sample's forward and backward pass. The first counting in a process takes a second."""
        return sample_flops(self._build(), self._first.card)

    @cached_property
    def forward_flops(self) -> int:
        """Floating-point operations of one sample's forward pass alone."""
        return sample_flops(self._build(), self._first.card, backward=False)

    @property
    def finished(self) -> bool:
        """Whether every run's budget is spent."""
        return all(member.finished for member in self.members)

    @property
    def member(self) -> Member:
        """The run, of a trainer that holds one."""
        (member,) = self.members
        return member

    def keep(self, runs: Sequence[int]) -> None:
        """Go on with these runs only; the others' rows are gone."""
        for member in self.members:
            member.clients.retire()
        which = torch.tensor(list(runs), device=self.device)
        self.members = [self.members[run] for run in runs]
        self.state = self.state.of_runs(which)
        self._meter = self._meter[which]
        if self._noise is not None:
            self._noise.keep(which)
        self._allocate([self._rows[run] for run in runs])

    def run_round(self) -> None:
        """One round of every run: cohorts, starts, local steps, updates.

        Raises:
            ValueError: a run's budget is spent; :meth:`keep` the others.
        """
        if any(member.finished for member in self.members):
            raise ValueError("a run of this trainer has spent its budget; keep() the others, or make a new trainer")
        algorithm = self._first.algorithm
        plans = [member.plan(partial(self._losses, run), self._payload) for run, member in enumerate(self.members)]
        rows = [len(plan.ids) for plan in plans]
        if rows != self._rows:
            self._allocate(rows)
        work = self._prepare(plans)
        self._row_meter.zero_()
        if isinstance(algorithm, EventDriven):
            self._train_events(algorithm, work)
            self._advance(work, None)
            return
        if self._starts_own:
            starts = [algorithm.start(turn.state, turn.clients) for turn in work.turns]
            work.tensors["starts"] = starts[0] if len(starts) == 1 else torch.cat(starts)
        else:
            for turn in work.turns:
                turn.clients.fabric.count_down(turn.state.model)
        if self._noise is not None:
            self._noise.begin()
        self._train_rows(work)
        means = [self._mean(run, turn) for run, turn in enumerate(work.turns)]
        shown = self._show(work) if self._shows else None
        measured = self._measure(work, means) if self._measures or self._noise is not None else None
        for turn, mean in zip(work.turns, means, strict=True):
            if turn.reports:
                self._conclude(turn, work, mean)
            turn.put_back()
        if shown is not None:
            for member, turn in zip(self.members, work.turns, strict=True):
                member.note(turn.plan, {name: values[turn.section] for name, values in shown.items()})
        self._advance(work, measured)

    def _conclude(self, turn: _Turn, work: _Work, mean: Tensor | None) -> None:
        """How what came back to a run becomes its next state. Where nobody reports nothing comes back, and nothing changes."""
        algorithm = self._first.algorithm
        if mean is not None:
            algorithm.outer(turn.state, turn.clients, mean)
        else:
            starts = work.tensors["starts"][turn.section] if self._starts_own else turn.state.model.expand(len(turn.plan.ids), -1)
            algorithm.update(turn.state, turn.clients, starts, self._ends[turn.section])
        algorithm.finish(turn.state, turn.clients)

    def _losses(self, run: int, ids: Indices, samples: int | None) -> Reals:
        """Mean losses of a run's present model over the targets of some clients, int64 [n]: float64 [n]. Reads them back."""
        asked = self.members[run].asked_samples(ids, samples)
        which = np.concatenate(asked)
        trained = self._first.m * (self._first.J or 1) * self._first.batch_size
        if len(which) > 10 * trained and not self._asked_much:
            self._asked_much = True
            scheme = self._first.participation
            fewer = "; participation.samples=64 asks for 64 of each client" if samples is None and hasattr(scheme, "samples") else ""
            self._notify(
                f"participation={scheme.name} asks for the losses of {len(which):,} samples before a round that trains {trained:,}{fewer}"
            )
        found = self.engine.losses(self.state.model[run].clone(), self.split.train, to_device(which, self.device)).cpu().numpy()
        counts = np.array([len(own) for own in asked])
        losses, targets = np.add.reduceat(found, np.cumsum(counts) - counts).T
        means: Reals = losses / np.maximum(1, targets)
        return means

    def _show(self, work: _Work) -> dict[str, Reals]:
        """What the round has shown of each row, for the participation scheme, by name: float64 [rows]. Reads it back at once."""
        samples = np.maximum(1, work.counts.sum(1))
        read = torch.cat([self._row_meter.double(), self._row_travel.double()], 1).cpu().numpy()
        shown = {"loss": read[:, 0] / np.maximum(1, read[:, 2]), "norm": np.sqrt(read[:, -1])}
        return shown | ({"root_square": np.sqrt(read[:, METER] / samples)} if self.engine.squares else {})

    def _advance(self, work: _Work, measured: list[Measured] | None) -> None:
        """The round is done: figures and counts."""
        computed = (work.asked * work.counts).sum(1)
        for run, (member, turn) in enumerate(zip(self.members, work.turns, strict=True)):
            self._meter[run] += self._row_meter[turn.section, :METER].sum(0)
            member.advance(turn.plan, int(computed[turn.section].sum()), self._payload)
            if measured is not None:
                member.learn(turn.plan, measured[run])

    def _mean(self, run: int, turn: _Turn) -> Tensor | None:
        """The mean of what came back to a run, [1, P], where the method wants no more than that."""
        if not self._streams or not turn.reports:
            return None
        turn.clients.fabric.count_up(turn.state.model)
        threads = self._threads[run]
        mean = self._ends[0, run : run + 1] if threads == 1 else self._ends[:threads, run].sum(0, keepdim=True)
        # x + sum of q_k (w_k - x), where weights q do not sum to 1.
        return mean.add_(turn.state.model, alpha=turn.plan.rest) if turn.plan.rest else mean

    def _measure(self, work: _Work, means: list[Tensor | None]) -> list[Measured] | None:
        """What a round has shown of each run. Reads back what the rule for local steps asks for, and nothing else."""
        if self._noise is not None:
            size = self._first.batch_size
            self._noise.end(size, [bool((work.counts[turn.section, 0] == size).all()) for turn in work.turns])
            for turn in work.turns:
                turn.clients.fabric.count_down(turn.state.model)
                turn.clients.fabric.count_up(turn.state.model)
        if not self._measures:
            return None
        figures = [self._figures(turn, mean) for turn, mean in zip(work.turns, means, strict=True)]
        if "noise" in self._measures and self._noise is not None:
            for figure, noise in zip(figures, self._noise.values(), strict=True):
                figure["noise"] = noise
        read = torch.stack([torch.stack([value.double() for value in figure.values()]) for figure in figures]).tolist()
        return [Measured(**dict(zip(figure, row, strict=True))) for figure, row in zip(figures, read, strict=True)]

    def _figures(self, turn: _Turn, mean: Tensor | None) -> Tensors:
        """What the rule for local steps asks for of a run's round, by name, as numbers on the device."""
        figures: Tensors = {}
        if "loss" in self._measures:
            loss, _, targets = self._row_meter[turn.section, :METER].double().sum(0).unbind()
            figures["loss"] = loss / targets.clamp(min=1)
        if "drift" in self._measures:
            weights = turn.clients.weights
            if mean is None:  # the method takes it by itself, if at all
                mean = turn.clients.fabric.sum_weighted(self._ends[turn.section], weights)
            progress = (mean - turn.state.model).square().sum()
            # sum of w_k |w_k - w|^2 = sum of w_k |w_k - x|^2 - |w - x|^2: the rows need not lie side by side
            moved = (weights[:, None] * self._row_travel[turn.section]).sum()
            figures |= {"progress": progress, "drift": (moved - progress) / (len(weights) - 1)}
        return figures

    def _prepare(self, plans: list[Plan]) -> _Work:
        """A round's local steps, and the cohorts of the runs. All that goes to the device goes in two pieces."""
        steps = max(plan.steps for plan in plans)
        size = self._first.batch_size
        batches = steps * self._first.algorithm.batches_per_step
        draws = batches * size
        samples = np.concatenate([plan.samples for plan in plans])
        cursors = np.concatenate([member.cursors[plan.ids] for member, plan in zip(self.members, plans, strict=True)])
        streams = np.array([stream for member, plan in zip(self.members, plans, strict=True) for stream in member.streams(plan)], np.int64)
        indices = np.concatenate([member.draw(plan, draws) for member, plan in zip(self.members, plans, strict=True)])
        integers = to_device(np.concatenate([indices, streams[:, None], cursors[:, None]], axis=1), self.device)
        width = _width(steps)
        reals = [
            np.column_stack([np.pad(plan.rates, ((0, 0), (0, width - plan.steps))), plan.weights, np.full(len(plan.ids), plan.mean_rate)])
            for plan in plans
        ]
        numbers = to_device(np.concatenate(reals), self.device).to(self.dtype)
        tensors = {
            "indices": integers[:, :draws].reshape(-1, batches, size),
            "streams": integers[:, draws],
            "cursors": integers[:, draws + 1],
            "lr": numbers[:, :width],
        }
        cuts = [bool((plan.samples < plan.steps * self._first.step_samples).any()) for plan in plans]
        if any(cuts):
            counting = np.arange(draws)[None] < samples[:, None]
            tensors["counting"] = to_device(counting, self.device).to(self.dtype).view(-1, batches, size)
        exchanges = [tuple(mixing is not None for mixing in plan.mixing) for plan in plans]
        if any(map(any, exchanges)):
            tensors["mixing"] = to_device(np.concatenate([_mixing_of_rows(plan, steps) for plan in plans]), self.device).to(self.dtype)
        counts = np.clip(samples[:, None] - np.arange(batches) * size, 0, size)
        turns = [
            self._turn(run, plan, numbers[self._sections[run], width:], cut, own)
            for run, (plan, cut, own) in enumerate(zip(plans, cuts, exchanges, strict=True))
        ]
        return _Work(tensors, counts, np.zeros_like(counts), turns)

    def _turn(self, run: int, plan: Plan, numbers: Tensor, cut: bool, exchanges: tuple[bool, ...]) -> _Turn:
        """A run's part in a round. numbers: [rows, 2], the rows' weights and the schedule's mean rate."""
        member, section, one = self.members[run], self._sections[run], slice(run, run + 1)
        reports = np.ones(len(plan.ids), np.bool_) if plan.reports is None else plan.reports
        fabric = Fabric(self._first.algorithm.federated, len(plan.ids), int(reports.sum()), member.traffic)
        slots = {name: slot[section] for name, slot in self._client_slots.items()}
        member.clients.check_out(plan.ids, member.round, slots)
        lost: list[int] = np.flatnonzero(~reports).tolist()
        kept = [(slot[row], slot[row].clone()) for slot in slots.values() for row in lost]
        server = Server(
            member.experiment.server,
            {name: values[one] for name, values in self._server_hyper.items()},
            self._server_lr[one],
            numbers[:1, 1:].clone(),
            self._layers,
        )
        clients = Clients(plan.ids, numbers[:, 0].clone(), slots, fabric, server)
        lost_rows = frozenset(section.start + row for row in lost)
        return _Turn(plan, section, self.state.of_runs(one), clients, cut, exchanges, int(reports.sum()), lost_rows, kept)

    def _train_rows(self, work: _Work) -> None:
        """All local steps of all rows, block by block.

        On a CPU the blocks of a run are shared among threads, each with a core and a sum of its own; on a GPU blocks of all runs are
        branches of a graph, whose ends are summed one after the other. Which neighbours a block has does not change its numbers.
        """
        if self._streams:
            self._ends.zero_()
        threaded = [run for run, threads in enumerate(self._threads) if threads > 1]
        others = [block for run, own in enumerate(self._blocks) if run not in threaded for block in own]
        for first in range(0, len(others), self._branches):
            wave = dict(enumerate(others[first : first + self._branches]))
            self._train_blocks(wave, work)
            for lane, block in wave.items():
                self._collect(lane, 0, block, work)
        if self._pool is None:
            return

        def share(thread: int) -> None:
            for run in threaded:
                for block in self._blocks[run][thread :: self._threads[run]] if thread < self._threads[run] else []:
                    self._train_blocks({thread: block}, work)
                    self._collect(thread, thread, block, work)

        self._abandoned = False
        shares = [self._pool.submit(share, thread) for thread in range(max(self._threads))]
        try:
            for done in shares:
                done.result()
        except BaseException:
            self._abandoned = True
            raise

    def _train_events(self, algorithm: EventDriven, work: _Work) -> None:
        """A block of events of each run: gradients that do not depend on each other together, all else in its order."""
        asked = work.asked
        for run, (member, turn) in enumerate(zip(self.members, work.turns, strict=True)):
            program, section, state = turn.plan.program, turn.section, turn.state
            assert program is not None and isinstance(state, WorkersState)
            own = {name: tensor[section] for name, tensor in work.tensors.items()}
            draws = Draws(
                self.split.train,
                own["indices"],
                own["streams"],
                own["cursors"],
                own["counting"] if turn.cut else None,
                self._row_meter[section],
                work.counts[section],
                asked[section],
            )
            for step in program.schedule:
                if step.kind != "gradients":
                    algorithm.communicate(state, 0, program, step.positions, member.traffic)
                    continue
                algorithm.before(state, 0, program, step.positions)
                workers, nth = program.events.worker[step.positions], program.nth[step.positions]
                self._train_at_once(algorithm, run, state, turn.clients.slots, workers, nth, draws, own["lr"])
            algorithm.settle(state, 0, program)

    def _train_at_once(
        self,
        algorithm: EventDriven,
        run: int,
        state: WorkersState,
        client_slots: Tensors,
        workers: Indices,
        nth: Indices,
        draws: Draws,
        lr: Tensor,
    ) -> None:
        """One local step of some workers of a run, int64 [n]; each its nth of the round."""
        which, step = to_device(workers, self.device), to_device(nth, self.device)
        first = self._sections[run].start
        place = self._places[0].parameters[: len(workers)]
        starts = state.workers[0].index_select(0, which)
        place.copy_(starts)
        slots = {name: slot.index_select(0, which) for name, slot in client_slots.items()}
        hyper = {name: values[first : first + len(workers)] for name, values in self._hyper.items()}
        batch = draws.at(workers, nth)
        algorithm.step(
            Rows(place, starts, slots, hyper, lr[which, step][:, None], self.members[run].experiment.optimizer, self._layers),
            self.engine.gradient,
            [batch],
            0,
        )
        for name, slot in slots.items():
            client_slots[name].index_copy_(0, which, slot)
        draws.meter.index_add_(0, which, batch.meter)
        draws.asked[workers, nth] += batch.asked
        algorithm.after(state, 0, which, starts, place)

    def _collect(self, lane: int, thread: int, block: _Block, work: _Work) -> None:
        """Take what a block has come to out of its place, which the next block needs; a row that is lost ends where it began."""
        turn, place = work.turns[block.run], self._places[lane].parameters
        for position, row in enumerate(range(block.rows.start, block.rows.stop)):
            if row in turn.lost:
                place[position].copy_(work.tensors["starts"][row] if self._starts_own else turn.state.model[0])
        rows = place[: block.rows.stop - block.rows.start]
        if not self._streams:
            self._ends[block.rows].copy_(rows)
            return
        first = block.rows.start - turn.section.start
        for end, weight in zip(rows, turn.clients.weights[first : first + len(rows)], strict=True):
            self._ends[thread, block.run].addcmul_(end, weight)

    def _train_blocks(self, wave: dict[int, _Block], work: _Work) -> None:
        """All local steps of some neighbouring blocks, one in each lane, in segments that can be recorded."""
        per_step = self._first.algorithm.batches_per_step
        rows = slice(min(block.rows.start for block in wave.values()), max(block.rows.stop for block in wave.values()))
        turns = [work.turns[run] for run in sorted({block.run for block in wave.values()})]
        steps = max(turn.plan.steps for turn in turns)
        length = GRAPH_STEPS if self.launcher.replays else steps
        for first in range(0, steps, length):
            last = min(first + length, steps)
            batches = slice(first * per_step, last * per_step)
            tensors = {name: tensor[rows] for name, tensor in work.tensors.items()}
            if not (cut := any(turn.cut for turn in turns)):
                tensors.pop("counting", None)
            for name, part in (("indices", batches), ("counting", batches), ("lr", slice(_width(steps))), ("mixing", slice(steps))):
                if name in tensors:
                    tensors[name] = tensors[name][:, part]
            tensors["cursors"] = tensors["cursors"] + first * self._first.step_samples
            counts = work.counts[rows, batches]
            train = partial(self._train_segment, wave, rows, slice(first, last), counts, work)
            # Rounds of other lengths share what they have in common: their first segments.
            own = tuple((min(last, turn.plan.steps), turn.plan.steps <= last, turn.exchanges[first:last]) for turn in turns)
            shapes = tuple(tensor.shape for tensor in tensors.values())
            key = None if cut else (rows.start, rows.stop, first, own, shapes)
            work.asked[rows, batches] += self.launcher.run(key, train, tensors)

    def _train_segment(self, wave: dict[int, _Block], rows: slice, steps: slice, counts: Indices, work: _Work, tensors: Tensors) -> Indices:
        """Some local steps of some blocks; how often each batch's gradient was asked for."""
        asked = np.zeros_like(counts)
        draws = Draws(
            self.split.train,
            tensors["indices"],
            tensors["streams"],
            tensors["cursors"],
            tensors.get("counting"),
            self._row_meter[rows],
            counts,
            asked,
        )
        pieces = [
            partial(
                self._train_block,
                lane,
                block,
                slice(block.rows.start - rows.start, block.rows.stop - rows.start),
                steps,
                draws,
                work,
                tensors,
            )
            for lane, block in wave.items()
        ]
        self.launcher.side_by_side(pieces)
        return asked

    def _train_block(self, lane: int, block: _Block, local: slice, steps: slice, draws: Draws, work: _Work, tensors: Tensors) -> None:
        """Some local steps of a block of rows, in the place of a lane. `local` is where the block lies in `tensors` and `draws`."""
        algorithm, place, turn = self._first.algorithm, self._places[lane], work.turns[block.run]
        size = block.rows.stop - block.rows.start
        parameters = place.parameters[:size]
        starts = tensors["starts"][local] if self._starts_own else turn.state.model.expand(size, -1)
        slots = {name: slot[:size] for name, slot in place.slots.items()}
        if steps.start == 0:
            parameters.copy_(starts)
            for slot in slots.values():
                slot.zero_()
            if not self._starts_own:
                self.engine.share(parameters)
        slots |= {name: slot[block.rows] for name, slot in self._client_slots.items()}
        hyper = {name: values[block.rows] for name, values in self._hyper.items()}
        optimizer = self.members[block.run].experiment.optimizer  # a weight decay of 0, say, takes other operations
        rows = Rows(parameters, starts, slots, hyper, tensors["lr"][local], optimizer, self._layers)
        batches = draws.batches(local, turn.cut)
        last = min(steps.stop, turn.plan.steps)
        for j in range(steps.start, last):
            step_batches = list(islice(batches, algorithm.batches_per_step))
            if self._abandoned:
                break
            active = np.array([batch.counts for batch in step_batches]).any(0) if turn.cut else None
            gradient: Gradient = self.engine.gradient
            if j == 0 and self._noise is not None:
                gradient = self._noise.watching(
                    gradient, block.index % max(self._branches, self._threads[block.run]), block.run, block.rows
                )
            if active is None or active.all():
                algorithm.step(rows, gradient, step_batches, j)
            elif active.any():
                # Rows whose samples are used up stay as they are while the others take their last steps.
                idle = to_device(np.logical_not(active), self.device)[:, None]
                before = [(tensor, tensor.clone()) for tensor in (rows.parameters, *rows.slots.values())]
                algorithm.step(rows, gradient, step_batches, j)
                for tensor, kept in before:
                    tensor.copy_(torch.where(idle, kept, tensor))
            else:
                break
            if turn.exchanges[j]:
                # Copies: at another address a product may have other last bits.
                parameters.copy_(tensors["mixing"][local, j].clone() @ parameters)
        if ("drift" in self._measures or "norm" in self._shows) and last == turn.plan.steps > steps.start:
            torch.sum((parameters - starts).square_(), 1, keepdim=True, out=self._row_travel[block.rows])

    def evaluate(self, runs: Sequence[int] = (0,)) -> list[Metrics]:
        """The present line of metrics of some runs; the training figures are running means since their last one. Reads back."""
        return [self._evaluate(run) for run in runs]

    def _evaluate(self, run: int) -> Metrics:
        member, whole = self.members[run], self.members[run].finished
        # A copy, as all that is evaluated: at another address a product may have other last bits.
        models = self._first.algorithm.models(self.state.of_runs(slice(run, run + 1))).clone()
        final = member.experiment.final
        sets = {"val": self.split.validation, "test": self.split.test}
        if not member.experiment.test:
            del sets["test"]
        if whole and any(samples.glance < final * len(samples) for samples in sets.values()):
            count = sum(math.ceil(final * len(samples)) for samples in sets.values())
            fewer = "" if final < 1 else "; evaluation.final=0.1 would look at a tenth"
            self._notify(f"the last evaluation looks at {count:,} samples of the validation and test sets{fewer}")
        loss, correct, targets = self._meter[run].tolist()
        metrics: Metrics = {
            "round": member.round,
            "samples": member.samples,
            "epoch": member.samples / len(self.split.train),
            "lr": member.lr,
            "train/loss": _finite(loss / max(1, targets)),
            "train/acc": _finite(correct / max(1, targets)),
        }
        for name in ("val", "test"):
            metrics[f"{name}/loss"] = metrics[f"{name}/acc"] = None
            if samples := sets.get(name):
                if whole and final < 1:
                    looked_at = samples.fair(math.ceil(final * len(samples)))
                else:
                    looked_at = torch.arange(len(samples) if whole else samples.glance, device=self.device)
                totals = self.engine.evaluate(models, samples, looked_at).mean(0)
                metrics[f"{name}/loss"], metrics[f"{name}/acc"], _ = (totals / totals[2]).tolist()
                metrics[f"{name}/loss"] = _finite(metrics[f"{name}/loss"] or 0.0)
        self._meter[run].zero_()
        return {
            **metrics,
            **({} if self._noise is None else {"noise_scale": _finite(float(self._noise.values()[run]))}),
            **({"J": member.J} if not self._first.local_steps.steady else {}),
            **({"asked": member.evaluated} if self._first.participation.asks else {}),
            **asdict(member.traffic),
            "seconds": member.seconds,
            "flops": self.sample_flops * member.computed + (self.forward_flops * member.evaluated if member.evaluated else 0),
        }

    def weights(self, run: int = 0) -> Tensor:
        """A run's model, [P], on the host."""
        return self.state.model[run].cpu()

    def checkpoint(self, run: int = 0) -> dict[str, Any]:
        """Everything that a run's next round depends on, as plain values and tensors; client state is written and referred to."""
        member = self.members[run]
        return {
            "round": member.round,
            "samples": member.samples,
            "lr": member.lr,
            "cursors": torch.from_numpy(member.cursors.copy()),
            "memory": dict(member.memory),
            "J": member.J,
            "seconds": member.seconds,
            "state": {name: tensor[run].clone() for name, tensor in self.state.tensors().items()},
            "meter": self._meter[run].clone(),
            "noise": None if self._noise is None else self._noise.averages[run].clone(),
            "gradient_samples": member.computed,
            "evaluated": member.evaluated,
            "participation": {name: torch.from_numpy(values.copy()) for name, values in member.recollection.items()},
            "traffic": asdict(member.traffic),
            "clients": member.clients.save(),
        }

    def restore(self, checkpoint: dict[str, Any], run: int = 0) -> None:
        """Go on with a run from its checkpoint.

        Raises:
            CorruptFile: client state that it refers to is damaged.
        """
        member = self.members[run]
        member.clients.restore(checkpoint["clients"])
        member.round, member.samples, member.lr = checkpoint["round"], checkpoint["samples"], checkpoint["lr"]
        member.cursors = checkpoint["cursors"].numpy().copy()
        member.memory, member.J, member.seconds = dict(checkpoint["memory"]), checkpoint["J"], checkpoint["seconds"]
        for name, tensor in self.state.tensors().items():
            tensor[run].copy_(checkpoint["state"][name])
        self._meter[run].copy_(checkpoint["meter"])
        if self._noise is not None:
            self._noise.averages[run].copy_(checkpoint["noise"])
        member.computed, member.evaluated = checkpoint["gradient_samples"], checkpoint["evaluated"]
        member.recollection = {name: values.numpy().copy() for name, values in checkpoint["participation"].items()}
        member.traffic = Traffic(**checkpoint["traffic"])


def _width(steps: int) -> int:
    """How long the rates of a round are laid out: in rounds of several graphs, alike for those that take nearly as many steps."""
    return steps if steps <= GRAPH_STEPS else -(-steps // GRAPH_STEPS) * GRAPH_STEPS


def _mixing_of_rows(plan: Plan, steps: int) -> Reals:
    """The weights of each row in every mixing of a round, float64 [rows, steps, rows]; where nothing is exchanged, only its own."""
    rows = len(plan.ids)
    own = np.eye(rows)
    return np.stack([own if j >= plan.steps or (mixing := plan.mixing[j]) is None else mixing for j in range(steps)], 1)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
