"""What a round's local steps are given, as typed tensors that go to the device at once."""

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
"""Local steps that are recorded in one graph; a longer round is several of them."""


@dataclass(frozen=True)
class StepInputs:
    """What differs from round to round, for some rows and some local steps.

    indices: int64 [rows, batches, B], positions in the training samples. streams: int64 [rows], the numbers that name each row's crops and
    flips. cursors: int64 [rows], samples that each row's client had drawn before these. rates: [rows, steps or more].
    sample_mask: [rows, batches, B], 1 where a sample counts and 0 where it pads; None where all count. starts: [rows, P], None where
    every row starts from the run's model. mixing: [rows, steps, rows of a run], with which models are mixed; None where they are not.
    """

    indices: Tensor
    streams: Tensor
    cursors: Tensor
    rates: Tensor
    sample_mask: Tensor | None = None
    starts: Tensor | None = None
    mixing: Tensor | None = None

    def named(self) -> dict[str, Tensor]:
        """Those that there are, by name."""
        values = {part.name: getattr(self, part.name) for part in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def of_rows(self, rows: slice) -> StepInputs:
        """Those of some rows."""
        return StepInputs(**{name: tensor[rows] for name, tensor in self.named().items()})

    def of_steps(self, steps: slice, of: int, batches_per_step: int, masked: bool) -> StepInputs:
        """Those of some local steps of a round of `of` steps. masked: whether there are samples in the round that do not count."""
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

    rows: where they lie. state: what the run carries, [1, ...], the trainer's own memory. clients: its cohort, with its rows' weights.
    masked: whether some row has fewer samples than its batches hold. exchanges: after which local steps rows exchange models.
    reports: how many rows do not drop out. lost: the others. before: of these, where client state lies, and what it was before the round.
    uplink_streams: int64 [rows], which name the draws of an uplink, None without one; server_stream: of its half at the server.
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
        """A client that drops out has lost its round: its state is that before it."""
        for place, before in self.before:
            place.copy_(before)


@dataclass
class RoundInputs:
    """A round of all runs: its local steps, and the runs' parts. Rows are those of all runs, one run after the other.

    counts: int64 [rows, batches], samples that count. calls: int64 [rows, batches, 3], what each batch was computed for.
    """

    steps: StepInputs
    counts: Indices
    calls: Indices
    runs: list[RunRound]

    def start_from(self, starts: Tensor) -> None:
        """Let every row begin with its own, [rows, P]."""
        self.steps = replace(self.steps, starts=starts)


def step_inputs(
    plans: Sequence[RoundPlan], runs: Sequence[PackedRun], device: torch.device, dtype: torch.dtype
) -> tuple[StepInputs, Indices]:
    """The inputs of the local steps of all runs, as long as the longest one needs them, and the samples that count [rows, batches]."""
    first = runs[0].experiment
    steps, size = max(plan.steps for plan in plans), first.batch_size
    batches = steps * first.algorithm.batches_per_step
    count = batches * size
    samples = np.concatenate([plan.samples for plan in plans])
    streams = np.array([stream for run, plan in zip(runs, plans, strict=True) for stream in run.augmentation_streams(plan)], np.int64)
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
    return bool((plan.samples < plan.steps * run.experiment.step_samples).any())


def _width(steps: int) -> int:
    """How long the rates of a round are laid out: in rounds of several graphs, alike for those that take nearly as many steps."""
    return steps if steps <= GRAPH_STEPS else -(-steps // GRAPH_STEPS) * GRAPH_STEPS


def _mixing_of_rows(plan: RoundPlan, steps: int) -> Reals:
    """The weights of each row in every mixing of a round, float64 [rows, steps, rows]; where nothing is exchanged, only its own."""
    rows = len(plan.ids)
    own = np.eye(rows)
    return np.stack([own if j >= plan.steps or (mixing := plan.mixing[j]) is None else mixing for j in range(steps)], 1)
