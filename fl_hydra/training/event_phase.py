"""The local steps of an asynchronous round, in the order of its events."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from fl_hydra.algorithms.events import EventDriven, WorkersState
from fl_hydra.arrays import Indices
from fl_hydra.devices import to_device
from fl_hydra.optim.base import Optimizer
from fl_hydra.participation.base import Losses
from fl_hydra.training.batch_stream import BatchStream, Beside
from fl_hydra.training.gradients import RowGradient
from fl_hydra.training.packed_run import PackedRun
from fl_hydra.training.planning import RoundPlan, plan_events
from fl_hydra.training.round_inputs import RoundInputs, RunRound
from fl_hydra.training.row_group import RowGroup
from fl_hydra.training.running_statistics import RunningStatistics
from fl_hydra.training.samples import Samples


class EventPhase:
    """A block of events of each run: independent gradients are computed together, everything else in order.

    It has the interface of :class:`fl_hydra.training.local_phase.LocalPhase`, but communication is part of the events: nothing is sent
    before them or averaged after them.

    Args:
        algorithm: defines the events.
        group: the rows.
        samples: the training samples.
    """

    def __init__(self, algorithm: EventDriven, group: RowGroup, samples: Samples) -> None:
        self._algorithm, self._group, self._samples = algorithm, group, samples
        self._statistics = RunningStatistics(group)

    def plan(self, run: PackedRun, losses: Losses) -> RoundPlan:
        """The next block of events of a run."""
        return plan_events(run, self._algorithm)

    def encode(self, part: RunRound, name: str, vectors: Tensor) -> Tensor:
        """What workers send, unchanged: there is no uplink between them."""
        return vectors

    def send(self, inputs: RoundInputs) -> None:
        """Workers already hold their models; only running statistics are set up."""
        for part in inputs.runs:
            self._statistics.begin(part)

    def train(self, inputs: RoundInputs, optimizers: list[Optimizer]) -> None:
        """Process all events of all runs. optimizers: of each run."""
        for run, part in enumerate(inputs.runs):
            state, program = part.state, part.plan.program
            assert isinstance(state, WorkersState)
            assert program is not None
            own = inputs.steps.of_rows(part.rows)
            stream = BatchStream(
                self._samples,
                own.indices,
                own.streams,
                own.cursors,
                own.sample_mask if part.masked else None,
                self._group.buffers.meter[part.rows],
                inputs.counts[part.rows],
                inputs.calls[part.rows],
                self._group.layout.random,
            )
            for step in program.schedule:
                if step.kind != "gradients":
                    self._algorithm.communicate(state, 0, program, step.positions, part.clients.fabric.traffic)
                    continue
                self._algorithm.before(state, 0, program, step.positions)
                workers, nth = program.events.worker[step.positions], program.nth[step.positions]
                self._step(run, part, state, optimizers[run], workers, nth, stream, own.rates)
            self._algorithm.settle(state, 0, program)

    def mean(self, run: int, part: RunRound) -> Tensor | None:
        """None: there is no mean."""
        return None

    def update(self, part: RunRound, inputs: RoundInputs, mean: Tensor | None) -> None:
        """Update the running statistics, which are not exchanged; the events have updated everything else."""
        self._statistics.end(part)

    def _step(
        self,
        run: int,
        part: RunRound,
        state: WorkersState,
        optimizer: Optimizer,
        workers: Indices,
        nth: Indices,
        stream: BatchStream,
        rates: Tensor,
    ) -> None:
        """Take one local step of some workers of a run, int64 [n], each its nth of the round."""
        group = self._group
        which, step = to_device(workers, group.device), to_device(nth, group.device)
        parameters = group.buffers.lanes[0].parameters[: len(workers)]
        starts = state.workers[0].index_select(0, which)
        parameters.copy_(starts)
        first = part.rows.start
        of_rows = group.of_rows(slice(first, first + len(workers)), run)
        kept = {name: values[part.rows].index_select(0, which) for name, values in group.buffers.kept.items()}
        running, frozen = group.buffers.statistics, state.buffers.get("frozen")
        own = None if running is None else running[part.rows].index_select(0, which)
        batch = stream.at(workers, nth, Beside(own, None if frozen is None else frozen[0]))
        lane = group.buffers.lanes[0]
        rows = group.rows(lane, parameters, starts, rates[which, step][:, None], optimizer, replace(of_rows, kept=kept))
        self._algorithm.step(rows, RowGradient(group.engine), [batch], 0)
        for name, values in kept.items():
            group.buffers.kept[name][part.rows].index_copy_(0, which, values)
        if running is not None and own is not None:
            running[part.rows].index_copy_(0, which, own)
        stream.meter.index_add_(0, which, batch.meter)
        stream.calls[workers, nth] += batch.calls
        self._algorithm.after(state, 0, which, starts, parameters)
