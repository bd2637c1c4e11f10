"""The local steps of a round, block by block; the ends of rows are summed as blocks finish."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from functools import partial
from itertools import islice
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from fl_hydra.algorithms.base import Algorithm, Returned
from fl_hydra.arrays import Indices
from fl_hydra.devices import to_device
from fl_hydra.optim.base import Optimizer
from fl_hydra.participation.base import Losses
from fl_hydra.seams.rows import CALLS
from fl_hydra.training import round_inputs
from fl_hydra.training.batch_stream import BatchStream, Beside
from fl_hydra.training.gradients import RowGradient
from fl_hydra.training.noise import NoiseScale
from fl_hydra.training.packed_run import PackedRun
from fl_hydra.training.planning import RoundPlan, plan_round
from fl_hydra.training.round_inputs import RoundInputs, RunRound, StepInputs
from fl_hydra.training.row_group import PERSONAL, UPLINK, Block, Lane, RowGroup
from fl_hydra.training.running_statistics import RunningStatistics
from fl_hydra.training.samples import Samples
from fl_hydra.uplinks.base import Uplink


class LocalPhase:
    """A round in which each row takes local steps from its start, and the server steps from what they return.

    Args:
        algorithm: defines the steps. uplink: encodes what clients send.
        group: the rows.
        samples: the training samples.
        noise: sees the gradients of the first step, if the noise scale is measured.
        measures_displacement: whether to measure the distance of each row's end from its start.
    """

    def __init__(
        self, algorithm: Algorithm, uplink: Uplink, group: RowGroup, samples: Samples, noise: NoiseScale | None, measures_displacement: bool
    ) -> None:
        self._algorithm, self._uplink, self._group, self._samples = algorithm, uplink, group, samples
        self._noise, self._measures_displacement = noise, measures_displacement
        self._statistics = RunningStatistics(group)
        self._sent: Set[str] | None = None
        """Names of what the method sends besides the model; None before the first round."""
        self._abandoned = False
        """Whether a thread has failed in this round, so that the others need not finish it."""

    def plan(self, run: PackedRun, losses: Losses) -> RoundPlan:
        """The next round of a run. losses: of its current model, for a participation scheme that queries them."""
        return plan_round(run, losses)

    def send(self, inputs: RoundInputs) -> None:
        """Send every row its start, and what the method sends besides it."""
        if self._algorithm.own_starts:
            starts = [self._algorithm.start(part.state, part.clients) for part in inputs.present]
            if starts:
                inputs.start_from(starts[0] if len(starts) == 1 else torch.cat(starts))
        else:
            for part in inputs.present:
                part.clients.fabric.count_down(part.state.model)
        for part in inputs.present:
            self._statistics.begin(part)
            message = self._algorithm.send(part.state, part.clients)
            self._check_names(message)
            for name, values in message.items():
                part.clients.fabric.count_down(values)
                self._group.receive(name, part.rows, values)

    def _check_names(self, message: Mapping[str, Tensor]) -> None:
        """Check that every round sends the same names, since rows would otherwise read what an earlier round sent."""
        names = self._sent = message.keys() if self._sent is None else self._sent
        if message.keys() != names:
            raise TypeError(
                f"algorithm={self._algorithm.name}: send gives {sorted(message)}, and gave {sorted(names)}; give the same always"
            )

    def train(self, inputs: RoundInputs, optimizers: list[Optimizer]) -> None:
        """Take all local steps of all rows. optimizers: of each run.

        On a CPU threads share the blocks of a run, each with its own core and its own sum; on a GPU blocks of all runs are branches of
        a graph, and their ends are summed one after the other. A block's results do not depend on its neighbours.
        """
        division, buffers, pool = self._group.division, self._group.buffers, self._group.pool
        if not self._algorithm.needs_ends:
            buffers.ends.zero_()
        threaded = [run for run, threads in enumerate(division.threads) if threads > 1]
        others = [block for run, own in enumerate(division.blocks) if run not in threaded for block in own]
        for first in range(0, len(others), division.branches):
            wave = dict(enumerate(others[first : first + division.branches]))
            self._train_blocks(wave, inputs, optimizers)
            for lane, block in wave.items():
                self._collect(lane, 0, block, inputs)
        if pool is None:
            return

        def train_on(thread: int) -> None:
            for run in threaded:
                for block in division.blocks[run][thread :: division.threads[run]] if thread < division.threads[run] else []:
                    self._train_blocks({thread: block}, inputs, optimizers)
                    self._collect(thread, thread, block, inputs)

        self._abandoned = False
        futures = [pool.submit(train_on, thread) for thread in range(max(division.threads))]
        try:
            for done in futures:
                done.result()
        except BaseException:
            self._abandoned = True
            raise

    def mean(self, run: int, part: RunRound) -> Tensor | None:
        """The mean of what a run's rows returned, [1, P]; None if the method needs every end, or nobody reports."""
        if self._algorithm.needs_ends or not part.reports:
            return None
        part.clients.fabric.count_up(part.state.model)
        part.clients.model_sent = True
        sums, threads = self._group.buffers.ends, self._group.division.threads[run]
        mean = sums[0, run : run + 1] if threads == 1 else sums[:threads, run].sum(0, keepdim=True)
        if part.plan.residual_weight:  # x + sum of q_k (w_k - x), where weights q do not sum to 1
            mean.add_(part.state.model, alpha=part.plan.residual_weight)
        if self._uplink.at_server:
            shared = self._group.shared
            change = shared.of(mean - part.state.model)
            self._uplink.arrive(change, part.reports, part.server_stream)
            shared.write(mean, shared.of(part.state.model) + change)
        return mean

    def update(self, part: RunRound, inputs: RoundInputs, mean: Tensor | None) -> None:
        """Update a run's state from what its rows returned. If nobody reports, nothing changes."""
        if part.reports:
            stays = self._group.unsent.of(part.state.model).clone()
            if mean is not None:
                self._algorithm.outer(part.state, part.clients, mean)
            else:
                returned = self.returned(part, inputs)
                self._algorithm.update(part.state, part.clients, returned.starts, returned.ends)
            self._group.unsent.write(part.state.model, stays)
            self._statistics.end(part)
            self._algorithm.finish(part.state, part.clients)
        part.restore_lost()

    def returned(self, part: RunRound, inputs: RoundInputs) -> Returned:
        """What a run's rows returned."""
        starts, buffers = inputs.steps.starts, self._group.buffers
        own = part.state.model.expand(len(part.plan.ids), -1) if starts is None else starts[part.rows]
        part.clients.own_ends = (buffers.ends if buffers.own_ends is None else buffers.own_ends)[part.rows]
        return Returned(part.state, part.clients, own, buffers.ends[part.rows], part.plan.samples)

    def _train_blocks(self, wave: dict[int, Block], inputs: RoundInputs, optimizers: list[Optimizer]) -> None:
        """Take all local steps of some neighbouring blocks, one in each lane, in segments that can be recorded."""
        launcher = self._group.launcher
        rows = slice(min(block.rows.start for block in wave.values()), max(block.rows.stop for block in wave.values()))
        parts = [inputs.runs[run] for run in sorted({block.run for block in wave.values()})]
        steps, masked = max(part.plan.steps for part in parts), any(part.masked for part in parts)
        per_step = self._algorithm.batches_per_step
        of_rows = inputs.steps.of_rows(rows)
        length = round_inputs.GRAPH_STEPS if launcher.replays else steps
        for first in range(0, steps, length):
            last = min(first + length, steps)
            batches = slice(first * per_step, last * per_step)
            segment = of_rows.of_steps(slice(first, last), steps, per_step, masked).named()
            train = partial(self._train_segment, wave, rows, slice(first, last), inputs.counts[rows, batches], inputs, optimizers)
            # Rounds of different lengths share the recordings of their first segments.
            own = tuple(
                (
                    *(min(last, part.plan.steps), part.plan.steps <= last, part.exchanges[first:last], part.plan.fixed),
                    part.plan.J if self._algorithm.reads_J else None,
                )
                for part in parts
            )
            shapes = tuple(tensor.shape for tensor in segment.values())
            blocks = tuple((lane, block.run, block.rows.start, block.rows.stop) for lane, block in wave.items())
            key = None if masked else (blocks, first, own, shapes)
            inputs.calls[rows, batches] += launcher.run(key, train, segment)

    def _train_segment(
        self,
        wave: dict[int, Block],
        rows: slice,
        steps: slice,
        counts: Indices,
        inputs: RoundInputs,
        optimizers: list[Optimizer],
        tensors: dict[str, Tensor],
    ) -> Indices:
        """Take some local steps of some blocks, and count the computations on each batch. All it reads except `tensors` is fixed memory."""
        given = StepInputs(**tensors)
        calls = np.zeros((*counts.shape, len(CALLS)), np.int64)
        stream = BatchStream(
            self._samples,
            given.indices,
            given.streams,
            given.cursors,
            given.sample_mask,
            self._group.buffers.meter[rows],
            counts,
            calls,
            self._group.layout.random,
        )
        self._group.launcher.side_by_side(
            [
                partial(
                    self._train_block,
                    self._group.buffers.lanes[lane],
                    block,
                    slice(block.rows.start - rows.start, block.rows.stop - rows.start),
                    steps,
                    stream,
                    inputs.runs[block.run],
                    optimizers[block.run],
                    given,
                )
                for lane, block in wave.items()
            ]
        )
        return calls

    def _train_block(
        self,
        lane: Lane,
        block: Block,
        local: slice,
        steps: slice,
        stream: BatchStream,
        part: RunRound,
        optimizer: Optimizer,
        given: StepInputs,
    ) -> None:
        """Take some local steps of a block of rows in a lane. local: the block's rows in `given` and `stream`."""
        algorithm, group, engine = self._algorithm, self._group, self._group.engine
        parameters = lane.parameters[: block.size]
        starts = part.state.model.expand(block.size, -1) if given.starts is None else given.starts[local]
        of_rows = group.of_rows(block.rows, block.run)
        if steps.start == 0:
            for slot in lane.slots.values():
                slot[: block.size].zero_()
        if lane.starts is not None:  # a client's personal parameters replace those that it is sent
            sent, starts = starts, lane.starts[: block.size]
            if steps.start == 0:
                starts.copy_(sent)
                group.personal.write(starts, of_rows.kept[PERSONAL])
        if steps.start == 0:
            parameters.copy_(starts)
            if given.starts is None and lane.starts is None:
                engine.mark_equal(parameters)
        rows = group.rows(lane, parameters, starts, given.rates[local], optimizer, of_rows, part.plan.J or 0)
        statistics, frozen = self._group.buffers.statistics, part.state.buffers.get("frozen")
        beside = Beside(None if statistics is None else statistics[block.rows], None if frozen is None else frozen[0], part.plan.fixed)
        changed = (
            parameters,
            *(() if beside.statistics is None else (beside.statistics,)),
            *of_rows.kept.values(),
            *(() if algorithm.keeps_optimizer else (slot[: block.size] for slot in lane.slots.values())),
        )
        batches = stream.batches(local, part.masked, beside)
        last = min(steps.stop, part.plan.steps)
        for j in range(steps.start, last):
            step_batches = list(islice(batches, algorithm.batches_per_step))
            if self._abandoned:
                break
            active = np.array([batch.counts for batch in step_batches]).any(0) if part.masked else None
            gradient = RowGradient(engine, self._watch(block) if j == 0 else None)
            if active is None or active.all():
                algorithm.step(rows, gradient, step_batches, j)
            elif active.any():
                # Rows that have no samples left do not change while the others take their last steps.
                idle = to_device(np.logical_not(active), self._group.device)[:, None]
                before = [(tensor, tensor.clone()) for tensor in changed]
                algorithm.step(rows, gradient, step_batches, j)
                for tensor, kept in before:
                    tensor.copy_(torch.where(idle, kept, tensor))
            else:
                break
            if part.exchanges[j]:
                assert given.mixing is not None
                # A copy, as the last bits of a product may depend on the address.
                for mixed in (parameters,) if beside.statistics is None else (parameters, beside.statistics):
                    mixed.copy_(given.mixing[local, j].clone() @ mixed)
        if last != part.plan.steps or last == steps.start:
            return
        algorithm.after_steps(rows)
        if lane.starts is not None:
            of_rows.kept[PERSONAL].copy_(group.personal.of(parameters))
            group.personal.write(parameters, group.personal.of(sent))
            group.personal.write(starts, group.personal.of(sent))
        if self._measures_displacement:
            torch.sum((parameters - starts).square_(), 1, keepdim=True, out=group.buffers.squared_displacement[block.rows])

    def _watch(self, block: Block) -> Callable[[Tensor], None] | None:
        """Takes the gradient of the first local step; None if the noise scale is not measured."""
        if self._noise is None:
            return None
        division = self._group.division
        lanes = max(division.branches, division.threads[block.run])
        return partial(self._noise.watch, lane=block.index % lanes, run=block.run, block=block.rows)

    def _collect(self, lane: int, thread: int, block: Block, inputs: RoundInputs) -> None:
        """Collect a finished block, so that the next block can use its lane; a row that drops out ends where it began."""
        part, ends = inputs.runs[block.run], self._group.buffers.ends
        rows = self._group.buffers.lanes[lane].parameters[: block.size]
        starts = part.state.model.expand(block.size, -1) if inputs.steps.starts is None else inputs.steps.starts[block.rows]
        if not self._uplink.bypassed:
            if self._group.buffers.own_ends is not None:
                self._group.buffers.own_ends[block.rows].copy_(rows)
            change = rows - starts
            self._encode("", change, block.rows, part)
            torch.add(starts, change, out=rows)
        for position, row in enumerate(range(block.rows.start, block.rows.stop)):
            if row in part.lost:
                rows[position].copy_(starts[position])
        if self._algorithm.needs_ends:
            ends[block.rows].copy_(rows)
            return
        first = block.rows.start - part.rows.start
        for end, weight in zip(rows, part.clients.weights[first : first + len(rows)], strict=True):
            ends[thread, block.run].addcmul_(end, weight)

    def encode(self, part: RunRound, name: str, vectors: Tensor) -> Tensor:
        """A named message that each row of a run sends besides its model, [rows, P], as it arrives."""
        arrived = vectors.clone()
        self._encode(name, arrived, part.rows, part)
        return arrived

    def _encode(self, name: str, vectors: Tensor, rows: slice, part: RunRound) -> None:
        if name and name not in self._algorithm.messages:
            raise TypeError(f"algorithm={self._algorithm.name}: sends {name!r}, which its `messages` does not declare")
        prefix = f"{UPLINK}{name}."
        slots = {key.removeprefix(prefix): kept[rows] for key, kept in self._group.buffers.kept.items() if key.startswith(prefix)}
        assert part.uplink_streams is not None
        streams = part.uplink_streams[rows.start - part.rows.start : rows.stop - part.rows.start]
        streams = streams ^ crc32(name.encode())  # each vector has draws of its own; the model's are those of the client
        if not self._group.unsent.width:
            self._uplink.encode(vectors, slots, streams)
            return
        shared, size = self._group.shared, self._group.layout.size
        named = {"": vectors, **slots}
        parts = {name: shared.of(tensor) if tensor.shape[1] == size else tensor for name, tensor in named.items()}
        self._uplink.encode(parts[""], {name: tensor for name, tensor in parts.items() if name}, streams)
        for name, tensor in named.items():
            if tensor.shape[1] == size:
                shared.write(tensor, parts[name])
