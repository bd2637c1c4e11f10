"""Measurements of rounds: training figures between evaluations, and what rules for local steps and participation schemes need."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from fl_hydra.arrays import Indices, Reals
from fl_hydra.devices import to_device
from fl_hydra.local_steps.base import Measured
from fl_hydra.seams.rows import METER_WIDTH
from fl_hydra.training.engines import Engine
from fl_hydra.training.noise import NoiseScale
from fl_hydra.training.packed_run import PackedRun
from fl_hydra.training.planning import RoundPlan
from fl_hydra.training.round_inputs import RoundInputs, RunRound
from fl_hydra.training.row_group import RowBuffers
from fl_hydra.training.samples import Samples


class Measurements:
    """Measurements of the rounds of all runs.

    Args:
        runs: of the trainer.
        device: where.
    """

    def __init__(self, runs: Sequence[PackedRun], device: torch.device) -> None:
        first = runs[0].experiment
        self._batches_per_step = first.algorithm.batches_per_step
        rounds = not first.algorithm.event_driven  # else workers send at different times, and nothing can be compared
        self.of_clients = frozenset[str]().union(*(run.experiment.participation.measures for run in runs)) if rounds else frozenset[str]()
        """What is read back for every row after a round, for the participation scheme."""
        self.of_rounds = first.local_steps.measures if rounds else frozenset[str]()
        """What is read back for every run after a round, for the rule for local steps."""
        self.noise = NoiseScale(len(runs), device) if first.noise_scale else None
        self.meter = torch.zeros(len(runs), METER_WIDTH, dtype=torch.float64, device=device)
        """Summed loss, correct predictions and targets of each run's batches since its last evaluation."""

    @property
    def measures_displacement(self) -> bool:
        """Whether the distance of each row's end from its start is needed."""
        return "drift" in self.of_rounds or "norm" in self.of_clients

    @property
    def squares(self) -> bool:
        """Whether the squared losses of samples are needed."""
        return "root_square" in self.of_clients

    def retain_runs(self, runs: Tensor) -> None:
        """Keep only these runs, int64."""
        self.meter = self.meter[runs]
        if self.noise is not None:
            self.noise.retain_runs(runs)

    def clients(self, inputs: RoundInputs, buffers: RowBuffers) -> dict[str, Reals]:
        """Measurements of each row by name, float64 [rows]; none if no scheme needs any. Reads back once."""
        if not self.of_clients:
            return {}
        samples = np.maximum(1, inputs.counts.sum(1))
        read = torch.cat([buffers.meter.double(), buffers.squared_displacement.double()], 1)[: len(samples)].cpu().numpy()
        figures = {"loss": read[:, 0] / np.maximum(1, read[:, 2]), "norm": np.sqrt(read[:, -1])}
        return figures | ({"root_square": np.sqrt(read[:, METER_WIDTH] / samples)} if self.squares else {})

    def rounds(self, inputs: RoundInputs, buffers: RowBuffers, means: Sequence[Tensor | None]) -> list[Measured] | None:
        """Measurements of each run's round for the rule for local steps; None if it needs none. Reads back once."""
        if self.noise is not None:
            size = inputs.steps.indices.shape[2]
            first = slice(0, self._batches_per_step)
            self.noise.end(size, [bool((inputs.counts[part.rows, first] == size).all()) for part in inputs.runs])
            for part in inputs.runs:
                part.clients.fabric.count_average(part.state.model)
        if not self.of_rounds:
            return None
        figures = [self._of_run(part, buffers, mean) for part, mean in zip(inputs.runs, means, strict=True)]
        if "noise" in self.of_rounds and self.noise is not None:
            for figure, noise in zip(figures, self.noise.values(), strict=True):
                figure["noise"] = noise
        read = torch.stack([torch.stack([value.double() for value in figure.values()]) for figure in figures]).tolist()
        return [Measured(**dict(zip(figure, row, strict=True))) for figure, row in zip(figures, read, strict=True)]

    def _of_run(self, part: RunRound, buffers: RowBuffers, mean: Tensor | None) -> dict[str, Tensor]:
        """The rule's measurements of a run's round by name, as numbers on the device."""
        figures: dict[str, Tensor] = {}
        if "loss" in self.of_rounds:
            loss, _, targets = buffers.meter[part.rows, :METER_WIDTH].double().sum(0).unbind()
            figures["loss"] = loss / targets.clamp(min=1)
        if "drift" in self.of_rounds:
            weights = part.clients.weights
            if mean is None:  # the method computes it by itself, if at all
                mean = part.clients.fabric.sum_weighted(buffers.ends[part.rows], weights)
            progress = (mean - part.state.model).square().sum()
            # sum of w_k |w_k - w|^2 = sum of w_k |w_k - x|^2 - |w - x|^2: the rows need not be in memory together
            moved = (weights[:, None] * buffers.squared_displacement[part.rows]).sum()
            figures |= {"progress": progress, "drift": (moved - progress) / (len(weights) - 1)}
        return figures

    def add(self, run: int, rows: Tensor) -> None:
        """Add the meters of a run's rows in a round, [rows, 3 or more]."""
        self.meter[run] += rows[:, :METER_WIDTH].sum(0)


def joined(plan: RoundPlan, parts: Sequence[RunRound], measured: Sequence[dict[str, Reals]]) -> dict[str, Reals]:
    """A run's measurements of its whole cohort by name, float64 [rows], from those of its part in each group of rows."""
    ids = np.concatenate([part.plan.ids for part in parts])
    places = np.argsort(ids)[np.argsort(np.argsort(plan.ids))]
    return {
        name: np.concatenate([each[name][part.rows] for part, each in zip(parts, measured, strict=True)])[places] for name in measured[0]
    }


class LossQueries:
    """Answers a participation scheme's queries for the losses of clients.

    Args:
        engine: evaluates. samples: the training samples. notify: is called once if far more is evaluated than trained.
    """

    def __init__(self, engine: Engine, samples: Samples, notify: Callable[[str], None]) -> None:
        self._engine, self._samples, self._notify = engine, samples, notify
        self._said = False

    def answer(self, run: PackedRun, model: Tensor, ids: Indices, samples: int | None) -> Reals:
        """Mean losses of a model [P] over the targets of some clients, int64 [n]: float64 [n]. Reads back."""
        asked = run.loss_samples(ids, samples)
        which = np.concatenate(asked)
        e = run.experiment
        trained = e.m * (e.J or 1) * e.step_samples
        if len(which) > 10 * trained and not self._said:
            self._said = True
            scheme = e.participation
            fewer = "; participation.samples=64 asks for 64 of each client" if samples is None and hasattr(scheme, "samples") else ""
            self._notify(
                f"participation={scheme.name} asks for the losses of {len(which):,} samples before a round that trains {trained:,}{fewer}"
            )
        found = self._engine.losses(model.clone(), self._samples, to_device(which, model.device)).cpu().numpy()
        counts = np.array([len(own) for own in asked])
        losses, targets = np.add.reduceat(found, np.cumsum(counts) - counts).T
        means: Reals = losses / np.maximum(1, targets)
        return means
