"""The one loop.

Every method, including centralized training, repeats a round: choose participants, give each row its start, J local steps,
communicate, outer step. A round reads nothing back to the host except the state of clients that leave the cohort, if the method
has such state, and the measurements of a rule for local steps or a participation scheme, if they need any.

A trainer holds one run, or several that train together ("packed"), with the rows of each run adjacent. Not one bit of a run depends
on the others: a block of rows belongs to one run, sums are taken run by run in a fixed order, a method's seams see one run at a time,
and the number of threads and the size of blocks follow from the run alone. So runs may join and leave a pack after any round.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fl_hydra.algorithms.base import State
from fl_hydra.algorithms.events import EventDriven
from fl_hydra.arrays import Indices, Reals
from fl_hydra.devices import computes_in, keep_freed_memory
from fl_hydra.errors import require
from fl_hydra.seams.rows import CALLS
from fl_hydra.training.architecture import Architecture
from fl_hydra.training.averages import AVERAGE, AVERAGE_STATISTICS, averages
from fl_hydra.training.client_store import ClientStore
from fl_hydra.training.cohorts import Cohorts
from fl_hydra.training.engine_selection import candidates, fastest
from fl_hydra.training.evaluation import Metrics, evaluate
from fl_hydra.training.event_phase import EventPhase
from fl_hydra.training.experiment import Experiment
from fl_hydra.training.judged import JudgedModel
from fl_hydra.training.local_phase import LocalPhase
from fl_hydra.training.measurements import LossQueries, Measurements
from fl_hydra.training.packed_run import PackedRun
from fl_hydra.training.personal_evaluation import PersonalEvaluation, PersonalScores
from fl_hydra.training.planning import RoundPlan
from fl_hydra.training.precision import PRECISIONS
from fl_hydra.training.round_inputs import RoundInputs, step_inputs
from fl_hydra.training.row_group import RowGroup
from fl_hydra.training.shard_passes import ShardPasses
from fl_hydra.training.split import load_split


class Trainer:
    """One run, or several that train together, in memory.

    Args:
        experiments: what to train; several must have the same :func:`fl_hydra.runs.packing.shape`.
        engine: one of :data:`fl_hydra.training.engine_selection.ENGINES`, or `auto`.
        device: where.
        client_folders: for each run, where client state is written; None keeps it in memory.
        state_on: where client state is held between a client's rounds: `auto`, `device`, `cpu` or `disk`.
        rows_at_once, samples_at_once: rows of a run that are trained in one block, and samples of a batch whose gradient is computed
            at once; None: a function of the configuration, fewer if memory is short. A run's last bits depend on them.
        notify: is told, in one line, what the user should know.

    Raises:
        UserError: the model does not fit the samples, or the shards cannot be made.
    """

    def __init__(
        self,
        *experiments: Experiment,
        engine: str = "auto",
        device: str = "cpu",
        client_folders: Sequence[Path] | None = None,
        state_on: str = "auto",
        rows_at_once: int | None = None,
        samples_at_once: int | None = None,
        notify: Callable[[str], None] = lambda line: None,
    ) -> None:
        first = self._first = experiments[0]
        algorithm = first.algorithm
        self.device = _prepared(device)
        self.precision = PRECISIONS[first.precision]
        self.precision.configure(self.device)
        self._notify = notify
        if not computes_in(self.device, self.precision.compute):
            notify(f"precision={first.precision}: this CPU has no instructions for it, so that a step takes longer than in fp32, not less")
        architecture = Architecture.of(first.model, first.dataset_info, algorithm)
        self.engine_name = self._choose(experiments, architecture) if engine == "auto" else engine
        group = self.group = RowGroup(
            first, architecture, self.engine_name, self.precision, self.device, rows_at_once, samples_at_once, notify
        )
        self.split = load_split(first.dataset, first.data, first.split_seed, self.precision, self.device)
        first.uplink.check(group.layout.statistics.size - group.personal_statistics.width)
        if group.personal_statistics.width:
            _refuse_held_out(experiments)
        self.runs = [PackedRun(experiment, self.split.sample_owners, group.layout) for experiment in experiments]
        folders: Sequence[Path | None] = client_folders or [None] * len(experiments)
        models, buffers = group.initial([experiment.seed for experiment in experiments])
        for index, (run, model, folder) in enumerate(zip(self.runs, models, folders, strict=True)):
            statistics = buffers["model"][index : index + 1] if "model" in buffers else None
            initial = group.client_state(run.experiment, model[None], statistics, run.facts)
            run.clients = ClientStore(initial, first.K, folder, state_on, len(experiments))
        states = [run.experiment.algorithm.initial(model[None], run.facts) for run, model in zip(self.runs, models, strict=True)]
        self.state = type(states[0]).together(states)
        self.state.server, self.state.buffers = self._outer_slots(), group.buffers_of_runs(buffers, first.m)
        if first.swa is not None:
            self.state.buffers |= averages(self.state)
        self.measurements = Measurements(self.runs, self.device)
        group.engine.squares = self.measurements.squares
        self.loss_queries = LossQueries(group.engine, self.split.train, notify)
        self.cohorts = Cohorts(first, group, ShardPasses(group, self.split.train))
        self.personal = PersonalEvaluation(algorithm, group, self.split)
        self._phase: LocalPhase | EventPhase
        if isinstance(algorithm, EventDriven):
            self._phase = EventPhase(algorithm, group, self.split.train)
        else:
            self._phase = LocalPhase(
                algorithm, first.uplink, group, self.split.train, self.measurements.noise, self.measurements.measures_displacement
            )
        self._allocate([experiment.m for experiment in experiments])

    def run_round(self) -> None:
        """One round of every run.

        Raises:
            ValueError: a run's budget is spent; call :meth:`retain_runs` for the others.
        """
        if any(run.finished for run in self.runs):
            raise ValueError("a run of this trainer has spent its budget; retain_runs() the others, or make a new trainer")
        plans = [self._phase.plan(run, partial(self._losses, index)) for index, run in enumerate(self.runs)]
        if (counts := [len(plan.ids) for plan in plans]) != self.group.division.counts:
            self._resize(counts)
        inputs = self._begin(plans)

        self._phase.send(inputs)
        self._phase.train(inputs, [run.experiment.optimizer for run in self.runs])
        means = [self._phase.mean(index, part) for index, part in enumerate(inputs.runs)]

        of_clients = self.measurements.clients(inputs, self.group.buffers)
        of_rounds = self.measurements.rounds(inputs, self.group.buffers, means)
        for part, mean in zip(inputs.runs, means, strict=True):
            self._phase.update(part, inputs, mean)

        computed = (inputs.calls * inputs.counts[..., None]).sum(1)
        for index, (run, part) in enumerate(zip(self.runs, inputs.runs, strict=True)):
            self.measurements.add(index, self.group.buffers.meter[part.rows])
            if of_clients is not None:
                run.observe_clients(part.plan, {name: values[part.rows] for name, values in of_clients.items()})
            run.advance(part.plan, computed[part.rows].sum(0), self.group.payload)
            if of_rounds is not None:
                run.observe_round(part.plan, of_rounds[index])
            if run.experiment.swa is not None:
                models = self._first.algorithm.models(part.state)
                run.averaged = run.experiment.swa.follow(run.averaged, run.done, part.state, models)
            if run.finished:
                self._settle(run, part.state)
            if run.finished and self._first.algorithm.concludes:
                self._first.algorithm.conclude(part.state, self.cohorts.everyone(run, index, part.state))
                run.settle()

    def _settle(self, run: PackedRun, state: State) -> None:
        """After the last round: what is evaluated becomes the model."""
        models, statistics = self._evaluated(run, state)
        if models is not state.model:
            state.model.copy_(models.mean(0, keepdim=True))
        if statistics is not None:
            state.buffers["model"].copy_(statistics)

    def _evaluated(self, run: PackedRun, state: State) -> tuple[Tensor, Tensor | None]:
        """The models of a run that are evaluated, [models, P], and their running statistics where these are not the server's."""
        if run.averaged is not None:
            return state.buffers[AVERAGE], state.buffers.get(AVERAGE_STATISTICS)
        return self._first.algorithm.models(state), None

    def _begin(self, plans: list[RoundPlan]) -> RoundInputs:
        """Charge the planning, check out the cohorts' state, and prepare the inputs of local steps."""
        for run, plan in zip(self.runs, plans, strict=True):
            run.begin(plan, self.group.payload)
        steps, counts = step_inputs(plans, self.runs, self.device, self.group.dtype)
        parts = [
            self.cohorts.part(run, index, plan, self._state_of(index))
            for index, (run, plan) in enumerate(zip(self.runs, plans, strict=True))
        ]
        for part in parts:
            part.clients.uplink = None if self._first.uplink.bypassed else partial(self._phase.encode, part)
        self.group.buffers.meter.zero_()
        if self.measurements.noise is not None:
            self.measurements.noise.begin()
        return RoundInputs(steps, counts, np.zeros((*counts.shape, len(CALLS)), np.int64), parts)

    def _outer_slots(self) -> dict[str, Tensor]:
        """The outer optimizer's initial state for every field that it steps."""
        slots = {}
        for stepped in self._first.algorithm.outer_steps:
            vectors = self.state.model if stepped == "model" else self.state.carried[stepped]
            for name, width in self._first.server.slots.items():
                key = name if stepped == "model" else f"{stepped}.{name}"
                slots[key] = torch.zeros_like(vectors if width == "row" else vectors[:, :1])
        return slots

    def _resize(self, counts: list[int]) -> None:
        """Change each run's number of rows, within the allocated memory if it is enough."""
        if not self._fits(counts):
            self._allocate([max(count, before) for count, before in zip(counts, self.group.division.counts, strict=True)])
            if not self._fits(counts):  # fewer rows may use more threads
                self._allocate(counts)
        if self.measurements.noise is not None:
            self.measurements.noise.rows = counts

    def _fits(self, counts: list[int]) -> bool:
        """Divide the allocated memory among these numbers of rows, if it is enough; whether it is."""
        experiments = [run.experiment for run in self.runs]
        return self.group.resize(counts, [each.optimizer for each in experiments], [each.algorithm for each in experiments])

    def _allocate(self, counts: list[int]) -> None:
        """Allocate memory for rounds with these numbers of rows of each run."""
        group = self.group
        experiments = [run.experiment for run in self.runs]
        group.allocate(counts, [each.optimizer for each in experiments], [each.algorithm for each in experiments])
        self.cohorts.allocate([each.server for each in experiments])
        if self.measurements.noise is not None:
            self.measurements.noise.allocate(group.division.lanes, counts, group.layout.size, group.dtype)

    def _losses(self, index: int, ids: Indices, samples: int | None) -> Reals:
        """Mean losses of a run's current model, for its participation scheme."""
        model = self.group.whole(self.state.model[index : index + 1], self._state_of(index))[0]
        return self.loss_queries.answer(self.runs[index], model, ids, samples)

    def _choose(self, experiments: Sequence[Experiment], architecture: Architecture) -> str:
        """The engine for `auto`: by a rule, or by timing a few short rounds of each candidate."""
        first = self._first
        step_bytes = architecture.sample_bytes * first.batch_size
        names = candidates(self.device, architecture.layout, step_bytes, self.precision, first.m)
        if len(names) == 1:
            return names[0]
        rows = sum(experiment.m for experiment in experiments)
        described = (
            first.model,
            first.dataset_info,
            first.batch_size,
            rows,
            first.precision,
            first.algorithm,
            first.optimizer,
            self.device,
        )
        short = [replace(experiment, J=min(experiment.J or 4, 4), budget=10**12) for experiment in experiments]
        return fastest(names, lambda name: Trainer(*short, engine=name, device=str(self.device)).run_round, repr(described), self._notify)

    @property
    def finished(self) -> bool:
        """Whether every run's budget is spent."""
        return all(run.finished for run in self.runs)

    @property
    def sole_run(self) -> PackedRun:
        """The run of a trainer that holds only one."""
        (run,) = self.runs
        return run

    def retain_runs(self, runs: Sequence[int]) -> None:
        """Keep only these runs."""
        for run in self.runs:
            run.clients.retire()
        which = torch.tensor(list(runs), device=self.device)
        counts = [self.group.division.counts[run] for run in runs]
        self.runs = [self.runs[run] for run in runs]
        self.state = self.state.of_runs(which)
        self.measurements.retain_runs(which)
        self._allocate(counts)

    def evaluate(self, runs: Sequence[int] = (0,)) -> list[Metrics]:
        """The current metrics of some runs; training figures are means since the last evaluation. Reads back."""
        return [self._evaluate(run) for run in runs]

    def _evaluate(self, run: int) -> Metrics:
        state = self._state_of(run)
        # A copy, as for every evaluation: the last bits of a product may depend on the address.
        models, statistics = (state.model, None) if self.runs[run].finished else self._evaluated(self.runs[run], state)
        models = self.group.whole(models.clone(), state, statistics)
        personal = partial(self.personal_scores, run, self._judged(run)) if self.runs[run].experiment.personalised else None
        return evaluate(self.runs[run], run, models, personal, self.split, self.group, self.measurements, self._notify)

    def _judged(self, run: int) -> State:
        """What a run carries, with what is evaluated of it as its model, from which clients' models are made."""
        state = self._state_of(run)
        if self.runs[run].finished or not self._first.global_model:
            return state
        models, statistics = self._evaluated(self.runs[run], state)
        buffers = state.buffers if statistics is None else {**state.buffers, "model": statistics}
        return state if models is state.model else replace(state, model=models.mean(0, keepdim=True), buffers=buffers)

    def personal_scores(self, index: int, state: State, name: str, looked_at: Tensor) -> PersonalScores:
        """Scores of a run's clients with their own models."""
        run = self.runs[index]
        return self.personal.scores(run, state, name, looked_at, lambda ids: self.cohorts.uncharged(run, index, ids, state))

    def client_module(self, client: int, choice: int = 0, run: int = 0) -> JudgedModel:
        """The model with which a client is judged. choice: which of the method's `choices` is used."""
        packed, state = self.runs[run], self._judged(run)
        return self.personal.module(packed, state, self.cohorts.uncharged(packed, run, np.array([client]), state), choice)

    def _state_of(self, run: int) -> State:
        """What a run carries, the trainer's own memory."""
        return self.state.of_runs(slice(run, run + 1))

    def weights(self, run: int = 0) -> Tensor:
        """A run's model, [P], on the host."""
        return self.state.model[run].cpu()

    def checkpoint(self, run: int = 0) -> dict[str, Any]:
        """Everything that a run's next round depends on, as plain values and tensors; client state is written to files and referred to."""
        noise = self.measurements.noise
        return {
            **self.runs[run].state_dict(),
            "state": {name: tensor[run].clone() for name, tensor in self.state.tensors().items()},
            "meter": self.measurements.meter[run].clone(),
            "noise": None if noise is None else noise.averages[run].clone(),
        }

    def restore(self, checkpoint: dict[str, Any], run: int = 0) -> None:
        """Restore a run from its checkpoint.

        Raises:
            CorruptFile: client state that it refers to is damaged.
        """
        self.runs[run].load_state_dict(checkpoint)
        for name, tensor in self.state.tensors().items():
            tensor[run].copy_(checkpoint["state"][name])
        self.measurements.meter[run].copy_(checkpoint["meter"])
        if self.measurements.noise is not None:
            self.measurements.noise.averages[run].copy_(checkpoint["noise"])


def _refuse_held_out(experiments: Sequence[Experiment]) -> None:
    """Refuse runs in which clients would have to be judged without the running statistics that stay with them."""
    for e in experiments:
        require(
            e.participation.held_out is None,
            f"participation.held_out={e.participation.held_out}: running statistics of BatchNorm stay with clients here, and "
            "those that never train have none; choose another method, or leave held_out out",
        )


def _prepared(device: str) -> torch.device:
    """A device, made ready for training."""
    chosen = torch.device(device)
    if chosen.type == "cpu":
        keep_freed_memory()
        return chosen
    chosen = torch.device("cuda", torch.cuda.current_device() if chosen.index is None else chosen.index)
    torch.cuda.set_device(chosen)  # streams and graphs are created on the current device
    return chosen
