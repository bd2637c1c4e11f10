"""A run's inputs, resolved: typed parts and plain numbers. What Hydra composes ends here; a notebook can start here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fl_hydra.algorithms.base import Algorithm
from fl_hydra.data.dataset import Card, Dataset
from fl_hydra.models.base import Model
from fl_hydra.optim.base import Optimizer
from fl_hydra.optim.schedules import Scheduler
from fl_hydra.participation.base import Participation
from fl_hydra.sharding.base import Sharding


@dataclass(frozen=True)
class Experiment:
    """Everything that decides a run's result.

    K: clients or workers. m: how many take part in a round. J: local steps of a round; None: one pass over the images.
    N_c: classes for each client.
    batch_size: samples of a local step. budget: samples of the whole run. points: evaluations, equally spaced in the budget.
    """

    dataset: Dataset
    card: Card
    model: Model
    optimizer: Optimizer
    scheduler: Scheduler
    algorithm: Algorithm
    sharding: Sharding
    participation: Participation
    K: int
    m: int
    J: int | None
    N_c: int | None
    batch_size: int
    budget: int
    points: int
    precision: str
    seed: int
    split_seed: int
    data: Path

    @property
    def images(self) -> int:
        """Training images, after the validation split."""
        return int(self.dataset.train_counts(self.card).sum())

    @property
    def step_samples(self) -> int:
        """Samples of a local step of one row."""
        return self.algorithm.batches_per_step * self.batch_size

    def round_samples(self, done: int, rows: int) -> int:
        """Samples of the whole round of so many rows that begins after `done` samples.

        Where J is None that is the rest of a pass over the images, made up of whole steps: batches run across the border of
        two passes, so a round ends with the first step that completes one.
        """
        if self.J is not None:
            return rows * self.J * self.step_samples
        rest = self.images - done % self.images
        return -(-rest // self.step_samples) * self.step_samples

    @property
    def rounds(self) -> int:
        """Rounds of the run; the last one may be cut."""
        return -(-self.budget // (self.images if self.J is None else self.round_samples(0, self.m)))
