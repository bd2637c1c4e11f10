"""The inputs of a round's local steps, as typed tensors that are sent to the device together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from fl_hydra.algorithms.base import State
from fl_hydra.arrays import Indices, Reals
from fl_hydra.devices import to_device
from fl_hydra.seams.clients import Clients
from fl_hydra.training.packed_run import PackedRun
from fl_hydra.training.planning import RoundPlan

GRAPH_STEPS = 64
"""Local steps that are recorded in one graph; a longer round uses several."""


@dataclass(frozen=True)
class StepInputs:
    """Inputs that change from round to round, for some rows and some local steps.

    indices: int64 [rows, batches, B], positions in the training samples. streams: int64 [rows], identifying each row's crops and flips.
    cursors: int64 [rows], samples that each row's client drew before these. rates: [rows, steps or more].
    sample_mask: [rows, batches, B], 1 for samples and 0 for padding; None without padding. starts: [rows, P]; None if every row starts
    from the run's model. mixing: [rows, steps, rows of a run], weights with which models are mixed; None if they are not.
    """

    indices: Tensor
    streams: Tensor
    cursors: Tensor
    rates: Tensor
    sample_mask: Tensor | None = None
    starts: Tensor | None = None
    mixing: Tensor | None = None

    def named(self) -> dict[str, Tensor]:
        """The inputs that are not None, by name."""
        values = {part.name: getattr(self, part.name) for part in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def of_rows(self, rows: slice) -> StepInputs:
        """The inputs of some rows."""
        return StepInputs(**{name: tensor[rows] for name, tensor in self.named().items()})

    def of_steps(self, steps: slice, of: int, batches_per_step: int, masked: bool) -> StepInputs:
        """The inputs of some local steps of a round of `of` steps. masked: whether the round has padding."""
        batches = slice(steps.start * batches_per_step, steps.stop * batches_per_step)
        return replace(
            self,
            indices=self.indices[:, batches],
            cursors=self.cursors + steps.start * batches_per_step * self.indices.shape[2],
            rates=self.rates[:, : _width(of)],
            sample_mask=self.sample_mask[:, batches] if masked and self.sample_mask is not None else None,
            mixing=None if self.mixing is None else self.mixing[:, :of],
        )


@dataclass(frozen=True)
class RunRound:
    """A run's part in a round.

    rows: their positions. state: what the run carries, [1, ...], the trainer's own memory. clients: its cohort, with its rows' weights.
    masked: whether some row has fewer samples than its batches hold. exchanges: for each local step, whether rows exchange models after it.
    reports: number of rows that do not drop out. lost: the other rows. before: each tensor of their client state, with a copy from before
    the round. uplink_streams: int64 [rows], which identify an uplink's draws; None without one. server_stream: for its draws at the server.
    """

    plan: RoundPlan
    rows: slice
    state: State
    clients: Clients
    masked: bool
    exchanges: tuple[bool, ...]
    reports: int
    lost: frozenset[int]
    before: list[tuple[Tensor, Tensor]]
    uplink_streams: Tensor | None
    server_stream: int

    def restore_lost(self) -> None:
        """Reset the state of clients that dropped out to what it was before the round."""
        for place, before in self.before:
            place.copy_(before)


@dataclass
class RoundInputs:
    """A round of all runs: its local steps, and the runs' parts. The rows of all runs lie one run after the other.

    counts: int64 [rows, batches], samples without padding. calls: int64 [rows, batches, 3], computations on each batch.
    """

    steps: StepInputs
    counts: Indices
    calls: Indices
    runs: list[RunRound]

    @property
    def present(self) -> list[RunRound]:
        """The parts of runs that have rows here."""
        return [part for part in self.runs if len(part.plan.ids)]

    def start_from(self, starts: Tensor) -> None:
        """Let every row begin with its own start, [rows, P]."""
        self.steps = replace(self.steps, starts=starts)


def step_inputs(
    plans: Sequence[RoundPlan], runs: Sequence[PackedRun], device: torch.device, dtype: torch.dtype
) -> tuple[StepInputs, Indices]:
    """The inputs of all runs' local steps, for as many steps as the longest needs, and the samples without padding, [rows, batches]."""
    first = runs[0].experiment
    steps, size = max(plan.steps for plan in plans), first.batch_size
    batches = steps * first.algorithm.batches_per_step
    count = batches * size
    samples = np.concatenate([plan.samples for plan in plans])
    streams = np.array([stream for run, plan in zip(runs, plans, strict=True) for stream in run.augmentation_streams(plan.ids)], np.int64)
    cursors = np.concatenate([run.cursors[plan.ids] for run, plan in zip(runs, plans, strict=True)])
    indices = np.concatenate([run.draw(plan, count) for run, plan in zip(runs, plans, strict=True)])
    integers = to_device(np.concatenate([indices, streams[:, None], cursors[:, None]], axis=1), device)  # one transfer for the three
    rates = np.concatenate([np.pad(plan.rates, ((0, 0), (0, _width(steps) - plan.steps))) for plan in plans])
    mask = mixing = None
    if any(map(is_masked, plans, runs)):
        mask = to_device(np.arange(count)[None] < samples[:, None], device).to(dtype).view(-1, batches, size)
    if any(matrix is not None for plan in plans for matrix in plan.mixing):
        mixing = to_device(np.concatenate([_mixing_of_rows(plan, steps) for plan in plans]), device).to(dtype)
    inputs = StepInputs(
        integers[:, :count].reshape(-1, batches, size),
        integers[:, count],
        integers[:, count + 1],
        to_device(rates, device).to(dtype),
        mask,
        mixing=mixing,
    )
    return inputs, np.clip(samples[:, None] - np.arange(batches) * size, 0, size)


def is_masked(plan: RoundPlan, run: PackedRun) -> bool:
    """Whether some row of a run draws fewer samples than its batches hold."""
    plan = plan.whole or plan
    return bool((plan.samples < plan.steps * run.experiment.step_samples).any())


def _width(steps: int) -> int:
    """The padded length of a round's rates; with several graphs it is rounded up, so that rounds of similar length share their graphs."""
    return steps if steps <= GRAPH_STEPS else -(-steps // GRAPH_STEPS) * GRAPH_STEPS


def _mixing_of_rows(plan: RoundPlan, steps: int) -> Reals:
    """Each row's mixing weights after every step of a round, float64 [rows, steps, rows]; only its own if nothing is exchanged."""
    rows = len(plan.ids)
    own = np.eye(rows)
    return np.stack([own if j >= plan.steps or (mixing := plan.mixing[j]) is None else mixing for j in range(steps)], 1)
