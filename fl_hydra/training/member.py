"""A run as a trainer holds it: everything that belongs to one run alone, so that several can train together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

import numpy as np

from fl_hydra.algorithms.events import EventDriven, Program
from fl_hydra.arrays import Indices, Reals
from fl_hydra.data.order import Order
from fl_hydra.data.population import Population
from fl_hydra.errors import require
from fl_hydra.local_steps.base import Measured, Memory
from fl_hydra.participation.base import Losses, Round, no_losses
from fl_hydra.randomness import generator
from fl_hydra.training.clients import ClientStore
from fl_hydra.training.experiment import Experiment
from fl_hydra.training.fabric import Traffic
from fl_hydra.training.images import augmentation_stream

Mask = np.ndarray[tuple[int], np.dtype[np.bool_]]

_stream = lru_cache(maxsize=2**17)(augmentation_stream)


@dataclass(frozen=True)
class Plan:
    """What a run does in its next round.

    ids: int64 [rows], the cohort. samples: int64 [rows], what each draws. steps: local steps of the row with most samples.
    rates: float64 [rows, steps], learning rates that are taken: the schedule's, times b / B in a step of b of its B samples. mean_rate,
    last_rate: of the schedule's rates over the round's steps, without that factor, the mean and the last. weights: float64 [rows], of
    the mean, summing to 1; 0 for who drops out. mixing: what is exchanged after each step, float64 [rows, rows], or None for nothing.
    ends: simulated seconds at which the round is over.
    J: local steps that the rule for them has chosen; None where a round is a pass. program: the events of an asynchronous round.
    seen: what the participation scheme saw. rest: how much of the old model is in the mean; not 0 where the weights do not sum to 1.
    reports: bool [rows], who does not drop out.
    """

    ids: Indices
    samples: Indices
    steps: int
    rates: Reals
    mean_rate: float
    last_rate: float
    weights: Reals
    mixing: list[Reals | None]
    ends: float
    J: int | None
    program: Program | None = None
    seen: Round | None = None
    rest: float = 0.0
    reports: Mask | None = None


class Member:
    """One run of a trainer: its shards, its clients, and how far it has come.

    Args:
        experiment: what it trains.
        population: the training samples.
        store: of its clients' state.
    """

    def __init__(self, experiment: Experiment, population: Population, store: ClientStore) -> None:
        shards = experiment.sharding.shards(population, experiment.K, experiment.N_c, experiment.seed)
        self.experiment = experiment
        self.clients = store
        self.shards = shards
        self.shard_sizes = shards.sizes
        m, K, owners = experiment.m, experiment.K, int(np.count_nonzero(self.shard_sizes))
        require(
            m <= owners or m == K,
            f"C={m / K:g}: {owners} of {K} clients have samples, and {m} are needed; choose at most C={owners / K:g}",
        )
        self.order = Order(shards, experiment.seed)
        self.cursors = np.zeros(experiment.K, np.int64)
        """Samples that each client has drawn so far."""
        self.round = 0
        self.samples = 0
        self.lr = 0.0
        self.memory: Memory = {}
        """What the rule for local steps remembers."""
        self.J: int | None = None
        """Local steps of the last round, as the rule for them had it."""
        self.seconds = 0.0
        """Simulated: computing, and what workers were told to wait for a server."""
        self.speeds = experiment.speeds.draw(max(experiment.K, experiment.data_parallel), experiment.seed)
        """Of the K workers, or of those that share each step of a lone row."""
        self.sample_seconds = 1 / (experiment.speeds.throughput * self.speeds)
        """Simulated seconds that each of them takes for a sample."""
        self.traffic = Traffic()
        self.computed = 0
        """Samples that gradients were computed for, counted as often as they were asked for."""
        self.evaluated = 0
        """Samples that clients were asked for losses of, before they were chosen."""
        self.recollection: dict[str, Reals] = {}
        """What the participation scheme remembers."""

    @property
    def finished(self) -> bool:
        """Whether the budget is spent."""
        return self.samples >= self.experiment.budget

    @property
    def done(self) -> float:
        """The part of the budget that is spent."""
        return min(1.0, self.samples / self.experiment.budget)

    def plan(self, losses: Losses = no_losses, payload: int = 0) -> Plan:
        """The next round: a function of the run's configuration and of how far it has come. To be asked for once a round.

        Args:
            losses: of the present model, for schemes that ask for them. payload: bytes of a model, which is then sent.
        """
        e = self.experiment
        if isinstance(e.algorithm, EventDriven):
            return self._plan_events(e.algorithm)
        J = None if e.J is None else e.local_steps.steps(e.J, self.samples / e.budget, self.traffic.steps, self.memory)
        work = self._work(J)
        asking = _Asking(losses, self.shard_sizes)
        seen = Round(
            self.shard_sizes, e.m, e.seed, self.round, e.gamma, work * self.sample_seconds[: e.K], dict(self.recollection), asking.losses
        )
        cohort = e.participation.cohort(seen)
        ids, wanted = cohort.ids, work[cohort.ids]
        self.recollection.update(cohort.remember)
        self._charge(asking.asked, ids, payload)
        # The last round is cut: what remains of the budget is spread over the rows.
        samples = _cut(wanted, e.budget - self.samples)
        steps = -(-int(samples.max()) // e.step_samples)
        done = self.samples + np.minimum(samples[:, None], np.arange(steps + 1) * e.step_samples).sum(0)
        factors = [e.scheduler.factor(int(before), int(after - before), e.budget, e.batch_size) for before, after in pairwise(done)]
        # Of a whole round every row counts alike, however many steps it took; of a cut one, as far as it came.
        mixing = [e.algorithm.mixing(len(ids), J, j, steps, self.traffic.steps) if J is not None else None for j in range(steps)]
        by_size = samples * (wanted.max() / wanted) * (self.shard_sizes[ids] if e.algorithm.federated else 1.0)
        reports = e.participation.reports(ids, e.seed, self.round)
        weights = (by_size if cohort.weights is None else cohort.weights) * reports
        rest = 0.0
        if not weights.any():  # nobody reports, or of a cut round only those that had no sample left
            reports = np.zeros_like(reports)
        elif cohort.weights is not None and e.participation.weighs:
            # Whether a client drops out does not depend on what it would report: divided by how likely that is, the sum stays unbiased.
            weights = weights / (1 - e.participation.dropout)
            rest = 1 - weights.sum()
        else:
            weights = weights / weights.sum()
        return Plan(
            ids,
            samples,
            steps,
            e.peak_lr * np.array(factors) * _parts_of_batches(samples, steps, e.step_samples),
            e.peak_lr * float(np.mean(factors)),
            e.peak_lr * factors[-1],
            weights,
            mixing,
            self.seconds + (self._own_seconds(ids, samples, mixing) if e.data_parallel == 1 else self._shared_seconds(int(samples[0]))),
            J,
            seen=seen,
            rest=float(rest),
            reports=reports,
        )

    def _own_seconds(self, ids: Indices, samples: Indices, mixing: list[Reals | None]) -> float:
        """Simulated seconds of a round whose rows take their own steps: they wait for each other at every exchange, and at the end."""
        e = self.experiment
        ready, taken = np.zeros(len(ids)), np.zeros_like(samples)
        for step, weights in enumerate(mixing, 1):
            if weights is not None:
                now = np.minimum(samples, step * e.step_samples)
                ready = e.algorithm.wait(ready + (now - taken) * self.sample_seconds[ids], weights)
                taken = now
        return float((ready + (samples - taken) * self.sample_seconds[ids]).max())

    def _shared_seconds(self, samples: int) -> float:
        """Simulated seconds of a lone row's round of steps, each shared among workers (±1 sample) and over when the slowest is ready."""
        workers, size = self.experiment.data_parallel, self.experiment.step_samples
        of_steps = np.minimum(size, samples - np.arange(0, samples, size))[:, None]
        shares = of_steps // workers + (np.arange(workers) < of_steps % workers)
        return float((shares * self.sample_seconds).max(1).sum())

    def _charge(self, asked: list[tuple[Indices, Indices]], ids: Indices, payload: int) -> None:
        """Enter what it took that clients, int64 [n], were asked for losses on so many samples, int64 [n], before `ids` were chosen."""
        sent: set[int] = set()
        for clients, counts in asked:
            sent |= set(clients.tolist())
            self.evaluated += int(counts.sum())
            # A forward pass is taken for a third of what a gradient takes.
            self.seconds += float((counts * self.sample_seconds[clients]).max()) / 3
        further = len(sent - set(ids.tolist()))
        self.traffic.bytes_down += further * payload
        self.traffic.messages += further
        self.traffic.served += further

    def asked_samples(self, ids: Indices, count: int | None) -> list[Indices]:
        """Of each of these clients, the samples that its loss is taken of in this round: all, or the first `count` of a permutation."""
        if count is None:
            return [self.shards[client] for client in ids.tolist()]
        seed = self.experiment.seed
        return [generator(seed, "losses", self.round, client).permutation(self.shards[client])[:count] for client in ids.tolist()]

    def _plan_events(self, algorithm: EventDriven) -> Plan:
        """The next block of events. It has K J gradients; the last block, as many as the budget leaves."""
        e = self.experiment
        assert e.J is not None
        K, size, left = e.K, e.step_samples, e.budget - self.samples
        gradients = min(K * e.J, -(-left // size))
        done = self.cursors // size
        unit = size / e.speeds.throughput
        events = algorithm.events(e.J, gradients, done, self.speeds, unit, e.seed, self.round, self.seconds)
        program = Program.of(events, algorithm.schedule(events), e.J, done, self.seconds, unit)
        ticks = np.flatnonzero(events.peer < 0)
        workers, nth = events.worker[ticks], program.nth[ticks]
        samples = np.bincount(workers, minlength=K) * size
        samples[workers[-1]] -= max(0, gradients * size - left)
        rates = np.zeros((K, int(nth.max()) + 1))
        for position, (worker, step) in enumerate(zip(workers, nth, strict=True)):
            before = self.samples + position * size
            rates[worker, step] = e.peak_lr * e.scheduler.factor(before, size, e.budget, e.batch_size)
        last_rate = float(rates[workers[-1], nth[-1]])
        return Plan(
            np.arange(K),
            samples,
            rates.shape[1],
            rates * _parts_of_batches(samples, rates.shape[1], size),
            float(rates[workers, nth].mean()),
            last_rate,
            np.full(K, 1 / K),
            [None] * rates.shape[1],
            float(events.times[-1]),
            e.J,
            program,
        )

    def _work(self, J: int | None) -> Indices:
        """Samples that each client would draw in a whole round, int64 [K].

        Where J is None that is the rest of a pass over the samples, made up of whole steps: batches run across the border of
        two passes, so a round ends with the first step that completes one.
        """
        e = self.experiment
        if J is None:
            return np.array([-(-(e.train_samples - self.samples % e.train_samples) // e.step_samples) * e.step_samples])
        steps = e.local_steps.of_clients(e.algorithm.round_steps(J), self.speeds[: e.K], e.algorithm.federated, e.seed)
        return steps * e.step_samples

    def draw(self, plan: Plan, count: int) -> Indices:
        """The next `count` draws of each client: positions in the training samples, int64 [rows, count]."""
        return np.stack(
            [self.order.indices(client, cursor, count) for client, cursor in zip(plan.ids, self.cursors[plan.ids], strict=True)]
        )

    def streams(self, plan: Plan) -> list[int]:
        """The numbers that name the crops and flips of each client."""
        return [_stream(self.experiment.seed, client) for client in plan.ids.tolist()]

    def advance(self, plan: Plan, computed: int, payload: int) -> None:
        """The round is done; gradients were computed for so many samples, and a model has `payload` bytes."""
        e = self.experiment
        if e.data_parallel > 1:
            self.traffic.average(e.data_parallel, payload, times=plan.steps)
        for mixing in plan.mixing:
            if mixing is not None:
                e.algorithm.charge(self.traffic, mixing, payload)
        self.traffic.steps += plan.steps
        drawn = int(plan.samples.sum())
        self.cursors[plan.ids] += plan.samples
        self.samples += drawn
        self.computed += computed
        self.lr = plan.last_rate
        self.seconds = plan.ends
        self.J = plan.J
        self.round += 1

    def note(self, plan: Plan, shown: dict[str, Reals]) -> None:
        """Tell the participation scheme what the round has shown of each row, float64 [rows] by name. To be told before `advance`."""
        assert plan.seen is not None
        assert plan.reports is not None
        reported = {name: values[plan.reports] for name, values in shown.items()}
        seen = replace(plan.seen, memory=self.recollection)
        self.recollection = {**self.recollection, **self.experiment.participation.learn(seen, plan.ids[plan.reports], reported)}

    def learn(self, plan: Plan, measured: Measured) -> None:
        """Tell the rule for local steps what the round has shown."""
        e = self.experiment
        if e.J is not None:
            samples = len(plan.ids) * e.algorithm.round_steps(1) * e.batch_size
            e.local_steps.learn(measured, e.J, samples, self.samples / e.budget, self.memory)


class _Asking:
    """Passes questions for losses on, and keeps book of them.

    asked: of each question the clients, int64 [n], and how many samples of each, int64 [n].
    """

    def __init__(self, losses: Losses, sizes: Indices) -> None:
        self._losses, self._sizes = losses, sizes
        self.asked: list[tuple[Indices, Indices]] = []

    def losses(self, ids: Indices, samples: int | None) -> Reals:
        counts = self._sizes[ids]
        self.asked.append((ids, counts if samples is None else np.minimum(counts, samples)))
        return self._losses(ids, samples)


def _parts_of_batches(samples: Indices, steps: int, size: int) -> Reals:
    """b / B of each step, float64 [rows, steps], by what each row draws, int64 [rows], in steps of B = `size` samples.

    A last batch of a few samples has a noisy gradient, and would count for as much as a whole one at the full rate.
    """
    parts: Reals = np.clip(samples[:, None] - np.arange(steps) * size, 0, size) / size
    return parts


def _cut(wanted: Indices, left: int) -> Indices:
    """What each row draws if no more than `left` samples are left for all: shares by what they want, rounded to whole samples."""
    total = int(wanted.sum())
    if total <= left:
        return wanted
    shares = wanted * left // total
    first = np.argsort(-(wanted * left % total), kind="stable")[: left - int(shares.sum())]
    shares[first] += 1
    return shares
