"""The one loop.

Every method, centralized training included, is rounds of: choose participants, give each row its start, J local steps,
communicate, outer step. Nothing in a round is read back to the host, but the state of clients that leave the cohort, where a
method has such state, and what a rule for the number of local steps or a participation scheme measures, where it does.

A trainer holds one run, or several that train together ("packed"): their rows lie side by side, the rows of a run are
neighbours, and no number of one run depends on another.
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

from fl_hydra.algorithms.base import Algorithm
from fl_hydra.algorithms.events import EventDriven, WorkersState
from fl_hydra.arrays import Indices, Reals
from fl_hydra.devices import free_memory, keep_freed_memory, to_device
from fl_hydra.local_steps.base import Measured
from fl_hydra.optim.base import Optimizer
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
class _Work:
    """A round's local steps. Tensors have a row for each local worker.

    tensors: what differs from round to round: `indices` [rows, batches, B], `streams`, `cursors`, `lr` [rows, steps], and, where
    there are such, sample weights `counting` [rows, batches, B], `starts` [rows, P] and `mixing` [rows, steps, rows of a run].
    counts: int64 [rows, batches], samples that count. asked: like counts, gradients asked for. cut: whether some row has fewer
    samples than its batches hold. exchanges: after which steps rows exchange models.
    """

    tensors: Tensors
    counts: Indices
    asked: Indices
    cut: bool
    exchanges: tuple[bool, ...]


class Trainer:
    """One run, or several that train together, in memory.

    Args:
        experiments: what to train; several must be alike as :func:`fl_hydra.training.packing.shape` says.
        engine: one of :data:`fl_hydra.training.choice.ENGINES`, or `auto`.
        device: where.
        client_folders: where state that belongs to clients is written, for each run; None keeps it in memory.
        rows_at_once, samples_at_once: rows that are trained in one block, and samples of a batch whose gradient is taken at once; None:
            as many as fit into free memory.
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

        module = self._build()
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
        self.engine.samples_at_once = min(self.engine.samples_at_once, samples_at_once or self._samples_that_fit())

        self.split = load_split(first.dataset, first.data, first.split_seed, self.precision, self.device)
        algorithm, optimizer = first.algorithm, first.optimizer
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
        self.fabric = Fabric(remote=algorithm.federated)
        self._shows = frozenset[str]().union(*(member.experiment.participation.measures for member in self.members))
        """What is read back of every row after a round, for the participation scheme."""
        self.engine.squares = "root_square" in self._shows
        self._meter = torch.zeros(len(experiments), METER, dtype=torch.float64, device=self.device)
        self._measures = first.local_steps.measures
        self._noise = NoiseScale(len(experiments), self.device) if first.noise_scale else None
        self._streams = type(algorithm).update is Algorithm.update
        """Whether only the mean of the rows' ends is needed, so that it can be taken block by block."""
        self._starts_own = type(algorithm).start is not Algorithm.start
        self._abandoned = self._asked_much = False
        self._lost: list[int] = []
        """Rows of the present round that drop out."""
        self._pool: ThreadPoolExecutor | None = None
        self._allocate([experiment.m for experiment in experiments])

    def _build(self) -> nn.Module:
        return self._first.model.build(self._first.card)

    def _choose(self, experiments: Sequence[Experiment]) -> str:
        """The engine of `auto`: by a rule, or by a few short rounds of each that may be the fastest."""
        first = self._first
        names = candidates(self.device, self.layout, self._sample_bytes * first.batch_size, self.precision)
        if len(names) == 1:
            return names[0]
        rows = sum(experiment.m for experiment in experiments)
        described = (first.model, first.card, first.batch_size, rows, first.precision, first.algorithm, first.optimizer, self.device)
        short = [replace(experiment, J=min(experiment.J or 4, 4), budget=10**12) for experiment in experiments]
        return fastest(names, lambda name: Trainer(*short, engine=name, device=str(self.device)).run_round, repr(described), self._notify)

    def _allocate(self, rows: list[int]) -> None:
        """The buffers of a round with so many rows of each run; they serve every round, and are never rebound within one."""
        most = self._limit or self._rows_that_fit(sum(rows))
        while True:
            try:
                self._make_buffers(rows, most)
                break
            except RuntimeError as error:
                if not out_of_memory(error) or most == 1:
                    raise
                most = self._limit = -(-min(most, sum(rows)) // 2)
                self._notify(f"the rows of a round do not fit into memory together; going on with {most} at once")
        self.rows_at_once = most
        """Rows of a block, at most."""

    def _rows_that_fit(self, rows: int) -> int:
        """How many rows can be trained at once in three quarters of the free memory."""
        free = free_memory(self.device)
        if free is None:
            return rows
        vectors = 4 + len(self._fresh)  # parameters, their gradient twice over, an intermediate of the optimizer, slots
        samples = min(self._first.batch_size, self.engine.samples_at_once)
        each = vectors * self.layout.size * self.dtype.itemsize + 2 * samples * self._sample_bytes
        return max(1, min(rows, int(0.75 * free / each)))

    def _samples_that_fit(self) -> int:
        """Of how many samples one row's gradient can be taken at once in half of the free memory."""
        free = free_memory(self.device)
        return self._first.batch_size if free is None else max(1, int(0.5 * free / (2 * self._sample_bytes)))

    @property
    def samples_at_once(self) -> int:
        """Samples of a batch whose gradient is taken at once; larger batches are accumulated."""
        return min(self._first.batch_size, self.engine.samples_at_once)

    def _make_buffers(self, rows: list[int], most: int) -> None:
        total = sum(rows)
        self._blocks = self.engine.blocks(total, most)
        if self._first.algorithm.coupled or isinstance(self._first.algorithm, EventDriven):
            self._blocks = [slice(0, total)]
        size = max(block.stop - block.start for block in self._blocks)
        lanes = min(self.engine.lanes(total, self._first.batch_size), len(self._blocks))
        if lanes > 1 and self.device.type != "cpu" and not self.launcher.replays:
            lanes = 1  # streams without a graph do not overlap kernels this small
        self._places = [
            _Place(self._buffer(size, self.layout.size), {name: self._buffer(size, width) for name, width in self._fresh.items()})
            for _ in range(lanes)
        ]
        self._rows = rows
        self._run_of_row = [run for run, count in enumerate(rows) for _ in range(count)]
        self._run = torch.tensor(self._run_of_row, device=self.device)
        if len(self._blocks) == 1:
            self._ends = self._places[0].parameters
        elif self._streams:
            self._ends = torch.zeros(lanes, len(rows), self.layout.size, dtype=self.dtype, device=self.device)
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
        self._first_rows = torch.tensor([sum(rows[:run]) for run in range(len(rows))], device=self.device)
        if self._noise is not None:
            self._noise.allocate(lanes, rows, self.layout.size, self.dtype)
        self.engine.bind([place.parameters for place in self._places])
        self.launcher.forget()
        if self._pool is not None:
            self._pool.shutdown(wait=False)
        self._pool = single_threaded_pool(lanes) if lanes > 1 and self.device.type == "cpu" else None

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
        reports = [len(plan.ids) if plan.reports is None else int(plan.reports.sum()) for plan in plans]
        self.fabric.begin(rows, [member.traffic for member in self.members], reports)
        self._lost = _lost_rows(plans)
        for member, plan, section in zip(self.members, plans, self.fabric.sections, strict=True):
            member.clients.check_out(plan.ids, member.round, {name: slot[section] for name, slot in self._client_slots.items()})

        work, weights = self._prepare(plans)
        local_lr = work.tensors["lr"].index_select(0, self._first_rows)[:, :1]
        server = Server(self._first.server, self._server_hyper, self._server_lr, local_lr, self._layers)
        clients = Clients(np.concatenate([plan.ids for plan in plans]), self._run, weights, self._client_slots, self.fabric, server)
        self._row_meter.zero_()
        if isinstance(algorithm, EventDriven):
            self._train_events(algorithm, work, plans)
            self._advance(plans, work, None)
            return
        if self._starts_own:
            work.tensors["starts"] = algorithm.start(self.state, clients)
        else:
            self.fabric.count_down(self.state.model)
        if self._noise is not None:
            self._noise.begin()
        self._train_rows(work, weights)
        mean = self._mean(clients, plans)
        unchanged = self._states_that_stay(reports)
        shown = self._show(work) if self._shows else None
        measured = self._measure(plans, clients, mean, work) if self._measures or self._noise is not None else None
        if mean is not None:
            algorithm.outer(self.state, clients, mean)
        else:
            starts = work.tensors["starts"] if self._starts_own else self._starts(slice(0, sum(rows)))
            algorithm.update(self.state, clients, starts, self._ends)
        algorithm.finish(self.state, clients)
        for name, tensor in self.state.tensors().items():
            for run, kept in unchanged.items():
                tensor[run].copy_(kept[name])
        if shown is not None:
            for member, plan, section in zip(self.members, plans, self.fabric.sections, strict=True):
                member.note(plan, {name: values[section] for name, values in shown.items()})
        self._advance(plans, work, measured)

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
        found = self.engine.losses(self.state.model[run], self.split.train, to_device(which, self.device)).cpu().numpy()
        counts = np.array([len(own) for own in asked])
        losses, targets = np.add.reduceat(found, np.cumsum(counts) - counts).T
        means: Reals = losses / np.maximum(1, targets)
        return means

    def _states_that_stay(self, reports: list[int]) -> dict[int, Tensors]:
        """What runs carry in whose round nobody is left to report: copies, by run."""
        return {
            run: {name: tensor[run].clone() for name, tensor in self.state.tensors().items()}
            for run, count in enumerate(reports)
            if not count
        }

    def _show(self, work: _Work) -> dict[str, Reals]:
        """What the round has shown of each row, for the participation scheme, by name: float64 [rows]. Reads it back at once."""
        samples = np.maximum(1, work.counts.sum(1))
        read = torch.cat([self._row_meter.double(), self._row_travel.double()], 1).cpu().numpy()
        shown = {"loss": read[:, 0] / np.maximum(1, read[:, 2]), "norm": np.sqrt(read[:, -1])}
        return shown | ({"root_square": np.sqrt(read[:, METER] / samples)} if self.engine.squares else {})

    def _advance(self, plans: list[Plan], work: _Work, measured: list[Measured] | None) -> None:
        """The round is done: figures and counts."""
        self._meter += self.fabric.sum(self._row_meter)[:, :METER]
        computed = (work.asked * work.counts).sum(1)
        payload = self._payload
        for run, (member, plan, section) in enumerate(zip(self.members, plans, self.fabric.sections, strict=True)):
            member.advance(plan, int(computed[section].sum()), payload)
            if measured is not None:
                member.learn(plan, measured[run])

    def _mean(self, clients: Clients, plans: list[Plan]) -> Tensor | None:
        """The mean of what came back, [runs, P], where the method wants no more than that."""
        if not self._streams:
            return None
        if len(self._blocks) == 1:
            mean = clients.mean(self._ends)
        else:
            self.fabric.count_up(self.state.model)
            mean = self._ends[0] if len(self._ends) == 1 else self._ends.sum(0)
        rest = np.array([[plan.rest] for plan in plans])
        if rest.any():
            # x + sum of q_k (w_k - x), with weights q that do not sum to 1.
            mean = mean + to_device(rest, self.device).to(self.dtype) * self.state.model
        return mean

    def _measure(self, plans: list[Plan], clients: Clients, mean: Tensor | None, work: _Work) -> list[Measured] | None:
        """What a round has shown of each run. Reads back what the rule for local steps asks for, and nothing else."""
        if self._noise is not None:
            size = self._first.batch_size
            whole = [bool((work.counts[section, 0] == size).all()) for section in self.fabric.sections]
            self._noise.end(size, whole)
            self.fabric.count_down(self.state.model)
            self.fabric.count_up(self.state.model)
        if not self._measures:
            return None
        figures: dict[str, Tensor] = {}
        if "loss" in self._measures:
            figures["loss"] = self.fabric.sum(self._row_meter)[:, 0]
        if "drift" in self._measures:
            if mean is None:  # the method takes it by itself, if at all
                mean = torch.stack([clients.weights[section] @ self._ends[section] for section in self.fabric.sections])
            figures["progress"] = (mean - self.state.model).square().sum(1)
            rows = torch.tensor([[len(plan.ids)] for plan in plans])
            # sum of w_k |w_k - w|^2 = sum of w_k |w_k - x|^2 - |w - x|^2: the rows need not lie side by side
            moved = torch.stack([clients.weights[section] @ self._row_travel[section] for section in self.fabric.sections])
            figures["drift"] = ((moved - figures["progress"][:, None]) / (rows.to(self.device) - 1))[:, 0]
        if "noise" in self._measures and self._noise is not None:
            figures["noise"] = self._noise.values()
        read = torch.stack([figure.double() for figure in figures.values()], 1).tolist()
        measured = [Measured(**dict(zip(figures, row, strict=True))) for row in read]
        return [
            replace(figure, loss=figure.loss / (int(plan.samples.sum()) * self._first.card.targets))
            for figure, plan in zip(measured, plans, strict=True)
        ]

    def _prepare(self, plans: list[Plan]) -> tuple[_Work, Tensor]:
        """A round's local steps, and the weights [rows] of its mean. All that goes to the device goes in two pieces."""
        steps = max(plan.steps for plan in plans)
        size = self._first.batch_size
        batches = steps * self._first.algorithm.batches_per_step
        draws = batches * size
        samples = np.concatenate([plan.samples for plan in plans])
        cursors = np.concatenate([member.cursors[plan.ids] for member, plan in zip(self.members, plans, strict=True)])
        streams = np.array([stream for member, plan in zip(self.members, plans, strict=True) for stream in member.streams(plan)], np.int64)
        indices = np.concatenate([member.draw(plan, draws) for member, plan in zip(self.members, plans, strict=True)])
        integers = to_device(np.concatenate([indices, streams[:, None], cursors[:, None]], axis=1), self.device)
        # A run that needs fewer steps than another has no samples left in the last ones.
        reals = np.concatenate(
            [np.concatenate([np.pad(plan.rates, ((0, 0), (0, steps - plan.steps)), "edge"), plan.weights[:, None]], 1) for plan in plans]
        )
        numbers = to_device(reals, self.device).to(self.dtype)
        tensors = {
            "indices": integers[:, :draws].reshape(-1, batches, size),
            "streams": integers[:, draws],
            "cursors": integers[:, draws + 1],
            "lr": numbers[:, :steps],
        }
        cut = bool((samples < draws).any())
        if cut:
            counting = np.arange(draws)[None] < samples[:, None]
            tensors["counting"] = to_device(counting, self.device).to(self.dtype).view(-1, batches, size)
        exchanges = tuple(any(j < plan.steps and plan.mixing[j] is not None for plan in plans) for j in range(steps))
        if any(exchanges):
            tensors["mixing"] = to_device(np.concatenate([_mixing_of_rows(plan, steps) for plan in plans]), self.device).to(self.dtype)
        counts = np.clip(samples[:, None] - np.arange(batches) * size, 0, size)
        return _Work(tensors, counts, np.zeros_like(counts), cut, exchanges), numbers[:, steps].contiguous()

    def _starts(self, block: slice) -> Tensor:
        """What rows begin with: their run's model, [rows, P], where it can be without a copy."""
        models = self.state.model
        first, last = self._run_of_row[block.start], self._run_of_row[block.stop - 1]
        if first == last:
            return models[first : first + 1].expand(block.stop - block.start, -1)
        return models.index_select(0, self._run[block])

    def _common_models(self, block: slice) -> Tensor | None:
        """The models of whole runs that a block of rows consists of, if there are equally many rows of each; else None."""
        first, last = self._run_of_row[block.start], self._run_of_row[block.stop - 1]
        if first == last:
            return self.state.model[first : first + 1]
        whole = sum(self._rows[first : last + 1]) == block.stop - block.start
        return self.state.model[first : last + 1] if whole and len(set(self._rows[first : last + 1])) == 1 else None

    def _train_rows(self, work: _Work, weights: Tensor) -> None:
        """All local steps of all rows, block by block. Each place takes its share of the blocks; on a CPU, each in a thread.

        Which thread trains a row does not change its numbers.
        """
        lanes = len(self._places)
        if self._streams and len(self._blocks) > 1:
            self._ends.zero_()

        if self._pool is None:
            for first in range(0, len(self._blocks), lanes):
                wave = dict(enumerate(self._blocks[first : first + lanes]))
                self._train_blocks(wave, work)
                for lane, block in wave.items():
                    self._collect(lane, block, weights)
            return

        def share(lane: int) -> None:
            for block in self._blocks[lane::lanes]:
                self._train_blocks({lane: block}, work)
                self._collect(lane, block, weights)

        shares = [self._pool.submit(share, lane) for lane in range(lanes)]
        try:
            for done in shares:
                done.result()
        except BaseException:
            self._abandoned = True
            raise

    def _train_events(self, algorithm: EventDriven, work: _Work, plans: list[Plan]) -> None:
        """A block of events of each run: gradients that do not depend on each other together, all else in its order."""
        asked = work.asked
        for run, (member, plan, section) in enumerate(zip(self.members, plans, self.fabric.sections, strict=True)):
            program = plan.program
            assert program is not None
            own = {name: tensor[section] for name, tensor in work.tensors.items()}
            draws = Draws(
                self.split.train,
                own["indices"],
                own["streams"],
                own["cursors"],
                own.get("counting"),
                self._row_meter[section],
                work.counts[section],
                asked[section],
            )
            for step in program.schedule:
                if step.kind != "gradients":
                    algorithm.communicate(self.state, run, program, step.positions, member.traffic)
                    continue
                algorithm.before(self.state, run, program, step.positions)
                workers, nth = program.events.worker[step.positions], program.nth[step.positions]
                self._train_at_once(algorithm, run, section.start, workers, nth, draws, own["lr"])
            algorithm.settle(self.state, run, program)

    def _train_at_once(
        self, algorithm: EventDriven, run: int, first: int, workers: Indices, nth: Indices, draws: Draws, lr: Tensor
    ) -> None:
        """One local step of some workers of a run, int64 [n], whose rows begin at `first`; each its nth of the round."""
        assert isinstance(self.state, WorkersState)
        which, step = to_device(workers, self.device), to_device(nth, self.device)
        place = self._places[0].parameters[: len(workers)]
        starts = self.state.workers[run].index_select(0, which)
        place.copy_(starts)
        slots = {name: slot.index_select(0, first + which) for name, slot in self._client_slots.items()}
        hyper = {name: values[first : first + len(workers)] for name, values in self._hyper.items()}
        batch = draws.at(workers, nth)
        algorithm.step(
            Rows(place, starts, slots, hyper, lr[which, step][:, None], self._first.optimizer, self._layers),
            self.engine.gradient,
            [batch],
            0,
        )
        for name, slot in slots.items():
            self._client_slots[name].index_copy_(0, first + which, slot)
        draws.meter.index_add_(0, which, batch.meter)
        draws.asked[workers, nth] += batch.asked
        algorithm.after(self.state, run, which, starts, place)

    def _collect(self, lane: int, block: slice, weights: Tensor) -> None:
        """Take what a block has come to out of its place, which the next block needs; what was lost on the way is the old model."""
        for row in self._lost:
            if block.start <= row < block.stop:
                self._places[lane].parameters[row - block.start].copy_(self.state.model[self._run_of_row[row]])
        if len(self._blocks) == 1:
            return
        rows = self._places[lane].parameters[: block.stop - block.start]
        if not self._streams:
            self._ends[block].copy_(rows)
            return
        for row, weight, run in zip(rows, weights[block], self._run_of_row[block], strict=True):
            self._ends[lane, run].addcmul_(row, weight)

    def _train_blocks(self, wave: dict[int, slice], work: _Work) -> None:
        """All local steps of some neighbouring blocks, one in each lane, in segments that can be recorded."""
        per_step = self._first.algorithm.batches_per_step
        rows = slice(min(block.start for block in wave.values()), max(block.stop for block in wave.values()))
        steps = work.tensors["lr"].shape[1]
        length = GRAPH_STEPS if self.launcher.replays else steps
        for first in range(0, steps, length):
            last = min(first + length, steps)
            batches = slice(first * per_step, last * per_step)
            tensors = {name: tensor[rows] for name, tensor in work.tensors.items()}
            for name in {"indices", "counting"} & tensors.keys():
                tensors[name] = tensors[name][:, batches]
            tensors["cursors"] = tensors["cursors"] + first * self._first.step_samples
            counts = work.counts[rows, batches]
            train = partial(self._train_segment, wave, rows, slice(first, last), counts, work)
            key = None if work.cut else (rows.start, rows.stop, first, last, steps, work.exchanges)
            work.asked[rows, batches] += self.launcher.run(key, train, tensors)

    def _train_segment(self, wave: dict[int, slice], rows: slice, steps: slice, counts: Indices, work: _Work, tensors: Tensors) -> Indices:
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
                slice(block.start - rows.start, block.stop - rows.start),
                steps,
                draws,
                work,
                tensors,
            )
            for lane, block in wave.items()
        ]
        self.launcher.side_by_side(pieces)
        return asked

    def _train_block(self, lane: int, block: slice, local: slice, steps: slice, draws: Draws, work: _Work, tensors: Tensors) -> None:
        """Some local steps of a block of rows, in the place of a lane. `local` is where the block lies in `tensors` and `draws`."""
        algorithm, place, cut = self._first.algorithm, self._places[lane], work.cut
        size = block.stop - block.start
        parameters = place.parameters[:size]
        starts = tensors["starts"][local] if self._starts_own else self._starts(block)
        slots = {name: slot[:size] for name, slot in place.slots.items()}
        if steps.start == 0:
            parameters.copy_(starts)
            for slot in slots.values():
                slot.zero_()
            if not self._starts_own and self.engine.shares and (models := self._common_models(block)) is not None:
                self.engine.share(parameters, models)
        slots |= {name: slot[block] for name, slot in self._client_slots.items()}
        hyper = {name: values[block] for name, values in self._hyper.items()}
        rows = Rows(parameters, starts, slots, hyper, tensors["lr"][local], self._first.optimizer, self._layers)
        batches = draws.batches(local)
        for j in range(steps.start, steps.stop):
            step_batches = list(islice(batches, algorithm.batches_per_step))
            if self._abandoned:
                break
            active = np.array([batch.counts for batch in step_batches]).any(0) if cut else None
            gradient: Gradient = self.engine.gradient
            if j == 0 and self._noise is not None:
                gradient = self._noise.watching(gradient, lane, block)
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
            if work.exchanges[j]:
                _mix(parameters, tensors["mixing"][local][:, j])
        if ("drift" in self._measures or "norm" in self._shows) and steps.stop == len(work.exchanges):
            torch.sum((parameters - starts).square_(), 1, keepdim=True, out=self._row_travel[block])

    def evaluate(self, runs: Sequence[int] = (0,)) -> list[Metrics]:
        """The present line of metrics of some runs; the training figures are running means since their last one. Reads back."""
        which = list(runs)
        ended = {self.members[run].finished for run in which}
        if len(ended) > 1 and self.split.test.glance < len(self.split.test):
            return [self.evaluate([run])[0] for run in which]  # only those that have ended are looked at as a whole
        state = self.state if which == list(range(len(self.members))) else self.state.of_runs(which)
        models = self._first.algorithm.models(state)
        figures: dict[str, list[list[float]] | None] = {}
        whole = ended == {True}
        if whole and self.split.test.glance < len(self.split.test):
            count = len(self.split.validation) + len(self.split.test)
            self._notify(f"the last evaluation looks at all {count:,} samples of the validation and test sets")
        for name, samples in (("val", self.split.validation), ("test", self.split.test)):
            if not len(samples):
                figures[name] = None
                continue
            looked_at = torch.arange(len(samples) if whole else samples.glance, device=self.device)
            totals = self.engine.evaluate(models, samples, looked_at).view(len(which), -1, METER).mean(1)
            figures[name] = (totals / totals[:, 2:]).tolist()
        meters = self._meter[which].tolist()
        noise = self._noise.values().tolist() if self._noise is not None else []
        rows = []
        for position, run in enumerate(which):
            member = self.members[run]
            loss, correct, targets = meters[position]
            metrics: Metrics = {
                "round": member.round,
                "samples": member.samples,
                "epoch": member.samples / len(self.split.train),
                "lr": member.lr,
                "train/loss": _finite(loss / max(1, targets)),
                "train/acc": _finite(correct / max(1, targets)),
            }
            for name, values in figures.items():
                metrics[f"{name}/loss"] = None if values is None else _finite(values[position][0])
                metrics[f"{name}/acc"] = None if values is None else values[position][1]
            rows.append(
                {
                    **metrics,
                    **({"noise_scale": _finite(noise[run])} if noise else {}),
                    **({"J": member.J} if not self._first.local_steps.steady else {}),
                    **({"asked": member.evaluated} if self._first.participation.asks else {}),
                    **asdict(member.traffic),
                    "seconds": member.seconds,
                    "flops": self.sample_flops * member.computed + (self.forward_flops * member.evaluated if member.evaluated else 0),
                }
            )
            self._meter[run].zero_()
        return rows

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


def _lost_rows(plans: list[Plan]) -> list[int]:
    """The rows whose clients drop out before they report."""
    reports = [np.ones(len(plan.ids), np.bool_) if plan.reports is None else plan.reports for plan in plans]
    lost: list[int] = np.flatnonzero(~np.concatenate(reports)).tolist()
    return lost


def _mixing_of_rows(plan: Plan, steps: int) -> Reals:
    """The weights of each row in every mixing of a round, float64 [rows, steps, rows]; where nothing is exchanged, only its own."""
    rows = len(plan.ids)
    own = np.eye(rows)
    return np.stack([own if j >= plan.steps or (mixing := plan.mixing[j]) is None else mixing for j in range(steps)], 1)


def _mix(parameters: Tensor, weights: Tensor) -> None:
    """Mix models [rows, P] within each run by weights [rows, rows of a run], in place."""
    rows = weights.shape[1]
    for first in range(0, len(parameters), rows):  # run by run: in a product with zeros, one that has diverged would spoil the others
        run = slice(first, first + rows)
        parameters[run] = weights[run] @ parameters[run]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
