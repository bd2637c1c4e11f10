"""A run's inputs, resolved: typed parts and plain numbers. Hydra's work ends here; a notebook can start here."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fl_hydra.algorithms.base import Algorithm
from fl_hydra.arrays import Indices
from fl_hydra.data.dataset import Dataset, DatasetInfo
from fl_hydra.data.public import public_samples, without_public
from fl_hydra.data.sample_owners import SampleCounts, SampleOwners
from fl_hydra.local_steps.base import LocalSteps
from fl_hydra.local_steps.scheduled import Fixed
from fl_hydra.models.base import Model
from fl_hydra.optim.base import Optimizer
from fl_hydra.optim.outer import Outer, OuterSGD
from fl_hydra.optim.schedules import Scheduler
from fl_hydra.participation.base import Participation
from fl_hydra.registry import as_before
from fl_hydra.sharding.base import Sharding, Shards
from fl_hydra.sharding.withheld import withhold
from fl_hydra.speeds.base import Speeds
from fl_hydra.speeds.models import Equal
from fl_hydra.training.averages import SWA
from fl_hydra.uplinks.base import Uplink
from fl_hydra.uplinks.none import NoUplink


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Everything that decides a run's result.

    K: clients or workers. m: how many take part in a round. J: local steps of a round, from which the rule `local_steps` starts; None: one
    pass over the samples. data_parallel: workers that share each step of a lone row. N_c: classes for each client.
    gamma: concentration of skewed participation.
    batch_size: samples of a local step. budget: samples of the whole run. points: evaluations, equally spaced in the budget.
    final: fraction of the validation and test samples that the last evaluation uses. test: whether the test set is evaluated.
    swa: how the server's models are averaged; None: they are not.
    architectures: client k has that at position k mod n; none: all have `model`.
    personal: on what clients are judged, `dealt` or `shards`; None: on what is dealt, if the method has models of clients.
    shard_part: of each shard, withheld from training for `shards`. joining_steps: of clients that are held out, before they are judged;
    None: there are none.
    """

    dataset: Dataset
    dataset_info: DatasetInfo
    model: Model
    optimizer: Optimizer
    server: Outer = field(default_factory=OuterSGD)
    scheduler: Scheduler
    algorithm: Algorithm
    local_steps: LocalSteps = field(default_factory=Fixed)
    sharding: Sharding
    participation: Participation
    speeds: Speeds = field(default_factory=Equal)
    uplink: Uplink = field(default_factory=NoUplink, metadata=as_before({"name": "none", "version": 1}))
    K: int
    m: int
    J: int | None
    N_c: int | None = None
    gamma: float | None = None
    batch_size: int
    data_parallel: int = 1
    budget: int
    points: int
    final: float = field(default=1.0, metadata=as_before(1.0))
    test: bool = field(default=True, metadata=as_before(True))
    noise_scale: bool = False
    precision: str
    seed: int
    split_seed: int
    data: Path
    swa: SWA | None = field(default=None, metadata=as_before(None))
    personal: str | None = field(default=None, metadata=as_before(None))
    shard_part: float | None = field(default=None, metadata=as_before(None))
    joining_steps: int | None = field(default=None, metadata=as_before(None))
    architectures: tuple[Model, ...] = field(default=(), metadata=as_before(()))

    @property
    def models(self) -> tuple[Model, ...]:
        """The models of clients, by the number of their architecture."""
        return self.architectures or (self.model,)

    @property
    def sample_counts(self) -> SampleCounts:
        """Of the training samples that clients have: after the validation split, and without public ones."""
        return without_public(self.dataset.sample_counts(self.dataset_info, self.split_seed), self.algorithm.public)

    def public_samples(self, sample_owners: SampleOwners) -> Indices:
        """The training samples that no client has, int64 [n], ascending; those of all seeds are the same."""
        return public_samples(sample_owners, self.algorithm.public, self.split_seed)

    def shards(self, sample_owners: SampleOwners) -> Shards:
        """The training samples of each client."""
        public = self.public_samples(sample_owners)
        if not len(public):
            return self.sharding.shards(sample_owners, self.K, self.N_c, self.seed)
        others = np.setdiff1d(np.arange(sample_owners.total), public)
        shards = self.sharding.shards(sample_owners.some(others), self.K, self.N_c, self.seed)
        return Shards(others[shards.indices], shards.offsets)

    @property
    def train_samples(self) -> int:
        """Training samples of clients."""
        return self.sample_counts.total

    @property
    def step_samples(self) -> int:
        """Samples of a local step of one row."""
        return self.algorithm.batches_per_step * self.batch_size

    @property
    def round_samples(self) -> int | None:
        """Samples of a whole round; None if they vary with the rule for J or with the cohort."""
        if self.J is None:
            return self.train_samples
        if not self.local_steps.steady or (self.local_steps.spread and self.m < self.K):
            return None
        return self.m * self.algorithm.round_steps(self.J) * self.step_samples

    @property
    def rounds(self) -> int | None:
        """Rounds of the run, the last of which may be cut; None if their number is not known beforehand."""
        return None if self.round_samples is None else -(-self.budget // self.round_samples)

    @property
    def global_model(self) -> bool:
        """Whether there is a model for everyone to evaluate: it also needs statistics for everyone."""
        return self.algorithm.global_model and self.model.statistics != "local"

    @property
    def personalised(self) -> bool:
        """Whether models of clients are evaluated."""
        return self.personal is not None or self.algorithm.personalised or not self.global_model

    def divided(self, sample_owners: SampleOwners) -> tuple[Shards, Shards | None, Shards | None]:
        """What each client trains with, and what is withheld of its shard for validation and for test; None: nothing is withheld."""
        shards = self.shards(sample_owners)
        if self.personal != "shards":
            return shards, None, None
        assert self.shard_part is not None
        return withhold(shards, sample_owners.labels, self.shard_part, self.seed)

    @property
    def peak_lr(self) -> float:
        """The learning rate at the top of the schedule."""
        return self.optimizer.lr * self.scheduler.scale(self.batch_size, self.m)
