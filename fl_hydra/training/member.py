"""A run as a trainer holds it: everything that belongs to one run alone, so that several can train together."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from fl_hydra.data.dataset import Indices
from fl_hydra.data.order import Order
from fl_hydra.sharding.base import equal_sizes
from fl_hydra.training.clients import ClientStore
from fl_hydra.training.experiment import Experiment
from fl_hydra.training.fabric import Traffic
from fl_hydra.training.images import augmentation_stream

_stream = lru_cache(maxsize=2**17)(augmentation_stream)


@dataclass(frozen=True)
class Plan:
    """What a run does in its next round.

    ids: int64 [rows], the cohort. samples: int64 [rows], what each draws. steps: local steps of the row with most samples.
    rates: the learning rate of each step. weights: float64 [rows], of the mean, summing to 1.
    """

    ids: Indices
    samples: Indices
    steps: int
    rates: list[float]
    weights: np.ndarray[tuple[int], np.dtype[np.float64]]


class Member:
    """One run of a trainer: its shards, its clients, and how far it has come.

    Args:
        experiment: what it trains.
        labels: int64 [N], of the training images.
        store: of its clients' state.
    """

    def __init__(self, experiment: Experiment, labels: Indices, store: ClientStore) -> None:
        shards = experiment.sharding.shards(labels, experiment.K, experiment.N_c, experiment.seed)
        self.experiment = experiment
        self.clients = store
        self.shard_sizes = shards.sizes
        self.order = Order(shards, experiment.seed)
        self.cursors = np.zeros(experiment.K, np.int64)
        """Samples that each client has drawn so far."""
        self.round = 0
        self.samples = 0
        self.lr = 0.0
        self.traffic = Traffic()
        self.metered = 0
        """Samples in the running means since the last row of metrics."""
        self.computed = 0
        """Samples that gradients were computed for, counted as often as they were asked for."""

    @property
    def finished(self) -> bool:
        """Whether the budget is spent."""
        return self.samples >= self.experiment.budget

    def plan(self) -> Plan:
        """The next round: a function of the run's configuration and of how far it has come."""
        experiment = self.experiment
        ids = experiment.participation.cohort(self.shard_sizes, experiment.m, experiment.seed, self.round)
        # The last round is cut: what remains of the budget is spread over the rows.
        whole = experiment.round_samples(self.samples, len(ids))
        samples = equal_sizes(min(whole, experiment.budget - self.samples), len(ids))
        steps = -(-int(samples.max()) // experiment.step_samples)
        together = len(ids) * experiment.step_samples
        factors = [experiment.scheduler.factor(self.samples + j * together, together, experiment.budget) for j in range(steps)]
        weights = samples * (self.shard_sizes[ids] if experiment.algorithm.federated else 1.0)
        return Plan(ids, samples, steps, [experiment.optimizer.lr * factor for factor in factors], weights / weights.sum())

    def draw(self, plan: Plan, count: int) -> Indices:
        """The next `count` draws of each client: positions in the training images, int64 [rows, count]."""
        return np.stack(
            [self.order.indices(client, cursor, count) for client, cursor in zip(plan.ids, self.cursors[plan.ids], strict=True)]
        )

    def streams(self, plan: Plan) -> list[int]:
        """The numbers that name the crops and flips of each client."""
        return [_stream(self.experiment.seed, client) for client in plan.ids.tolist()]

    def advance(self, plan: Plan, computed: int) -> None:
        """The round is done."""
        drawn = int(plan.samples.sum())
        self.cursors[plan.ids] += plan.samples
        self.samples += drawn
        self.metered += drawn
        self.computed += computed
        self.lr = plan.rates[-1]
        self.round += 1
