"""The clients whose models have one architecture, in all runs of a trainer: their rows, their state, and the phases of their rounds.

Most methods have one such group. Where clients differ (`Algorithm.mixes`), a round's plan is made once for the whole cohort, each group
trains the clients that it has in it, and the method combines what all groups return.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fl_hydra.algorithms.base import State
from fl_hydra.algorithms.events import EventDriven
from fl_hydra.seams.rows import CALLS
from fl_hydra.training.averages import averages
from fl_hydra.training.client_store import ClientStore
from fl_hydra.training.cohorts import Cohorts
from fl_hydra.training.event_phase import EventPhase
from fl_hydra.training.local_phase import LocalPhase
from fl_hydra.training.measurements import Measurements
from fl_hydra.training.packed_run import PackedRun
from fl_hydra.training.personal_evaluation import PersonalEvaluation, PersonalScores
from fl_hydra.training.planning import RoundPlan
from fl_hydra.training.round_inputs import RoundInputs, step_inputs
from fl_hydra.training.row_group import RowGroup
from fl_hydra.training.shard_passes import ShardPasses

if TYPE_CHECKING:
    from pathlib import Path

    from fl_hydra.training.split import Split


class ClientGroup:
    """One architecture's clients of all runs.

    Args:
        rows: of this architecture. runs: of the trainer. split: the samples.
        measurements: of all groups.
        folders: for each run, where client state is written; None keeps it in memory. state_on: where it is held.
    """

    def __init__(
        self,
        rows: RowGroup,
        runs: Sequence[PackedRun],
        split: Split,
        measurements: Measurements,
        folders: Sequence[Path | None],
        state_on: str,
    ) -> None:
        first = self._first = runs[0].experiment
        algorithm = first.algorithm
        self.rows, self._measurements = rows, measurements
        several = len(runs[0].members)
        models, buffers = rows.initial([run.experiment.seed for run in runs])
        for index, (run, model, folder) in enumerate(zip(runs, models, folders, strict=True)):
            statistics = buffers["model"][index : index + 1] if "model" in buffers else None
            members = run.members[rows.number]
            initial = rows.client_state(run.experiment, model[None], statistics, members.facts)
            kind = str(rows.number) if rows.number else ""
            clients = -(-first.K // several)
            members.clients = ClientStore(initial, clients, folder, state_on, len(runs) * several, kind)
        algorithm.check_memory(models, runs[0].members[rows.number].facts)
        states = [
            run.experiment.algorithm.initial(model[None], run.members[rows.number].facts) for run, model in zip(runs, models, strict=True)
        ]
        self.state = type(states[0]).together(states)
        self.state.server, self.state.buffers = self._outer_slots(), rows.buffers_of_runs(buffers, first.m)
        if first.swa is not None:
            self.state.buffers |= averages(self.state)
        samples = split.train
        rows.engine.squares = measurements.squares
        self.cohorts = Cohorts(first, rows, ShardPasses(rows, samples))
        self.personal = PersonalEvaluation(algorithm, rows, split)
        self.phase: LocalPhase | EventPhase
        if isinstance(algorithm, EventDriven):
            self.phase = EventPhase(algorithm, rows, samples)
        else:
            self.phase = LocalPhase(algorithm, first.uplink, rows, samples, measurements.noise, measurements.measures_displacement)

    def state_of(self, run: int) -> State:
        """What a run carries, this group's own memory."""
        return self.state.of_runs(slice(run, run + 1))

    def saved(self, run: int) -> dict[str, Tensor]:
        """What a run carries, for a checkpoint."""
        return {name: tensor[run].clone() for name, tensor in self.state.tensors().items()}

    def scores(self, run: PackedRun, index: int, state: State, looked_at: Mapping[str, Tensor]) -> dict[str, PersonalScores]:
        """Scores of a run's clients in this group with their own models, by set. state: from which these are made."""
        return self.personal.scores(run, state, looked_at, lambda ids: self.cohorts.uncharged(run, index, ids, state))

    def begin(self, runs: Sequence[PackedRun], plans: Sequence[RoundPlan]) -> RoundInputs:
        """Begin a round of the clients that this group has in it, if any: check out their state, and prepare the inputs of local steps."""
        number = self.rows.number
        plans = [plan.of_rows(run.architectures.have(plan.ids, number)) for run, plan in zip(runs, plans, strict=True)]
        counts = [len(plan.ids) for plan in plans]
        if counts != self.rows.division.counts:
            self._resize(runs, counts)
        steps, counted = step_inputs(plans, runs, self.rows.device, self.rows.dtype)
        parts = [
            self.cohorts.part(run, index, plan, self.state_of(index)) for index, (run, plan) in enumerate(zip(runs, plans, strict=True))
        ]
        for part in parts:
            part.clients.uplink = None if self._first.uplink.bypassed else partial(self.phase.encode, part)
        self.rows.buffers.meter.zero_()
        if self._measurements.noise is not None:
            self._measurements.noise.begin()
        return RoundInputs(steps, counted, np.zeros((*counted.shape, len(CALLS)), np.int64), parts)

    def _outer_slots(self) -> dict[str, Tensor]:
        """The outer optimizer's initial state for every field that it steps."""
        slots = {}
        for stepped in self._first.algorithm.outer_steps:
            vectors = self.state.model if stepped == "model" else self.state.carried[stepped]
            for name, width in self._first.server.slots.items():
                key = name if stepped == "model" else f"{stepped}.{name}"
                slots[key] = torch.zeros_like(vectors if width == "row" else vectors[:, :1])
        return slots

    def _resize(self, runs: Sequence[PackedRun], counts: list[int]) -> None:
        """Change each run's number of rows, within the allocated memory if it is enough."""
        for run in runs:
            run.members[self.rows.number].clients.retire()  # before their rows are others'
        if not self._fits(runs, counts):
            self.allocate(runs, [max(count, before) for count, before in zip(counts, self.rows.division.counts, strict=True)])
            if not self._fits(runs, counts):  # fewer rows may use more threads
                self.allocate(runs, counts)
        if self._measurements.noise is not None:
            self._measurements.noise.rows = counts

    def _fits(self, runs: Sequence[PackedRun], counts: list[int]) -> bool:
        """Divide the allocated memory among these numbers of rows, if it is enough; whether it is."""
        experiments = [run.experiment for run in runs]
        return self.rows.resize(counts, [each.optimizer for each in experiments], [each.algorithm for each in experiments])

    def allocate(self, runs: Sequence[PackedRun], counts: list[int]) -> None:
        """Allocate memory for rounds with these numbers of rows of each run."""
        experiments = [run.experiment for run in runs]
        self.rows.allocate(counts, [each.optimizer for each in experiments], [each.algorithm for each in experiments])
        self.cohorts.allocate([each.server for each in experiments], [each.algorithm for each in experiments])
        if self._measurements.noise is not None:
            rows = self.rows
            self._measurements.noise.allocate(rows.division.lanes, counts, rows.layout.size, rows.dtype)
