"""A run's next round, as a function of its configuration and progress."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from fl_hydra.algorithms.events import EventDriven, Program
from fl_hydra.arrays import Indices, Reals
from fl_hydra.participation.base import Losses, Round, no_losses

if TYPE_CHECKING:
    from fl_hydra.training.packed_run import PackedRun

Mask = np.ndarray[tuple[int], np.dtype[np.bool_]]


@dataclass(frozen=True)
class SelectionCost:
    """The cost of loss queries to clients before the cohort is chosen.

    samples: of forward passes. seconds: simulated. downloads: models sent to clients that are not in the cohort.
    """

    samples: int = 0
    seconds: float = 0.0
    downloads: int = 0


@dataclass(frozen=True)
class RoundPlan:
    """A round of one run.

    ids: int64 [rows], the cohort. samples: int64 [rows], what each draws. steps: local steps of the row with most samples.
    rates: float64 [rows, steps], learning rates of the steps: the schedule's, times b / B in a step of only b of B samples. mean_rate,
    last_rate: mean and last of the schedule's rates over the round's steps, without that factor. weights: float64 [rows], of the mean;
    0 for rows that drop out. mixing: weights of the exchange after each step, float64 [rows, rows]; None: no exchange.
    end_time: simulated seconds when the round ends.
    J: local steps chosen by the rule; None if a round is a pass. program: the events of an asynchronous round.
    seen: what the participation scheme saw. remember: changes to its memory. selection: the cost of choosing the cohort.
    residual_weight: weight of the old model in the mean, 1 minus the sum of `weights` if the scheme sets these itself; else 0.
    reports: bool [rows], whether each stays (does not drop out); None: all do.
    fixed: whether BatchNorm's running statistics no longer change, and are used in training (`model.statistics=frozen`).
    whole: the plan of the whole cohort, of which this one has some rows; None: this is the whole one.
    """

    ids: Indices
    samples: Indices
    steps: int
    rates: Reals
    mean_rate: float
    last_rate: float
    weights: Reals
    mixing: list[Reals | None]
    end_time: float
    J: int | None
    program: Program | None = None
    seen: Round | None = None
    remember: Mapping[str, Reals] = field(default_factory=dict)
    selection: SelectionCost = SelectionCost()
    residual_weight: float = 0.0
    reports: Mask | None = None
    fixed: bool = False
    whole: RoundPlan | None = None

    def of_rows(self, which: Mask) -> RoundPlan:
        """The plan of some rows, bool [rows], of a round without exchanges: as many steps, and the weights that they have in the cohort."""
        if which.all():
            return self
        return replace(
            self,
            ids=self.ids[which],
            samples=self.samples[which],
            rates=self.rates[which],
            weights=self.weights[which],
            reports=None if self.reports is None else self.reports[which],
            whole=self,
        )


def plan_round(run: PackedRun, losses: Losses = no_losses) -> RoundPlan:
    """The next round of a run. It changes nothing: :meth:`PackedRun.begin` and :meth:`PackedRun.advance` do.

    Args:
        losses: of the current model, for schemes that query them.
    """
    e = run.experiment
    J = None if e.J is None else e.local_steps.steps(e.J, run.samples / e.budget, run.traffic.steps, run.memory)
    work = _samples_of_whole_round(run, J)
    queries = _QueryAccount(losses, run.shard_sizes)
    seen = Round(
        run.drawn_sizes, e.m, e.seed, run.round, e.gamma, work * run.step_sample_seconds[: e.K], dict(run.scheme_state), queries.losses
    )
    cohort = e.participation.cohort(seen)
    ids, wanted = cohort.ids, work[cohort.ids]
    selection = queries.cost(ids, run.sample_seconds)
    # The last round is cut: the rest of the budget is divided among the rows.
    samples = _cut(wanted, e.budget - run.samples)
    steps = -(-int(samples.max()) // e.step_samples)
    done = run.samples + np.minimum(samples[:, None], np.arange(steps + 1) * e.step_samples).sum(0)
    cycling = run.cycling_factor
    factors = [cycling * e.scheduler.factor(int(before), int(after - before), e.budget, e.batch_size) for before, after in pairwise(done)]
    mixing = [e.algorithm.mixing(len(ids), J, j, steps, run.traffic.steps) if J is not None else None for j in range(steps)]
    # In a whole round every row counts fully, however many steps it takes; in a cut one, by the fraction that it completes.
    by_size = samples * (wanted.max() / wanted) * (run.shard_sizes[ids] if e.algorithm.federated else 1.0)
    own = np.ones(len(ids)) if e.uplink.private else by_size if cohort.weights is None else cohort.weights
    reports = e.participation.reports(ids, e.seed, run.round)
    weights = own * reports
    residual_weight = 0.0
    if not weights.any():  # nobody reports, or in a cut round only rows without samples
        reports = np.zeros_like(reports)
    elif cohort.weights is not None and e.participation.weighs:
        # Dropping out is independent of the update, so dividing by the probability of staying keeps the sum unbiased.
        weights = weights / (1 - e.participation.dropout)
        residual_weight = float(1 - weights.sum())
    else:
        weights = weights / weights.sum()
    began = run.seconds + selection.seconds
    seconds = _seconds_apart(run, ids, samples, mixing) if e.data_parallel == 1 else _seconds_of_shared_steps(run, int(samples[0]))
    return RoundPlan(
        ids,
        samples,
        steps,
        e.peak_lr * np.array(factors) * _parts_of_batches(samples, steps, e.step_samples),
        e.peak_lr * float(np.mean(factors)),
        e.peak_lr * factors[-1],
        weights,
        mixing,
        began + seconds,
        J,
        seen=seen,
        remember=cohort.remember,
        selection=selection,
        residual_weight=residual_weight,
        reports=reports,
        fixed=run.fixed,
    )


def plan_events(run: PackedRun, algorithm: EventDriven) -> RoundPlan:
    """The next block of events of an asynchronous method. It has K J gradients; the last block has those left in the budget."""
    e = run.experiment
    assert e.J is not None
    K, size, left = e.K, e.step_samples, e.budget - run.samples
    gradients = min(K * e.J, -(-left // size))
    done = run.cursors // size
    unit = e.algorithm.gradients_per_batch * size / e.speeds.throughput
    events = algorithm.events(e.J, gradients, done, run.speeds, unit, e.seed, run.round, run.seconds)
    program = Program.of(events, algorithm.schedule(events), e.J, done, run.seconds, unit)
    ticks = np.flatnonzero(events.peer < 0)
    workers, nth = events.worker[ticks], program.nth[ticks]
    samples = np.bincount(workers, minlength=K) * size
    samples[workers[-1]] -= max(0, gradients * size - left)
    rates, peak_lr = np.zeros((K, int(nth.max()) + 1)), e.peak_lr * run.cycling_factor
    for position, (worker, step) in enumerate(zip(workers, nth, strict=True)):
        rates[worker, step] = peak_lr * e.scheduler.factor(run.samples + position * size, size, e.budget, e.batch_size)
    last_rate = float(rates[workers[-1], nth[-1]])
    return RoundPlan(
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


class _QueryAccount:
    """Forwards a scheme's loss queries and records their cost.

    Args:
        losses: answers them. sizes: int64 [K], samples of each client.
    """

    def __init__(self, losses: Losses, sizes: Indices) -> None:
        self._losses, self._sizes = losses, sizes
        self._asked: list[tuple[Indices, Indices]] = []

    def losses(self, ids: Indices, samples: int | None) -> Reals:
        """Mean losses of some clients, int64 [n], on all or `samples` of their samples: float64 [n]."""
        counts = self._sizes[ids]
        self._asked.append((ids, counts if samples is None else np.minimum(counts, samples)))
        return self._losses(ids, samples)

    def cost(self, cohort: Indices, sample_seconds: Reals) -> SelectionCost:
        """The cost of all queries, given the chosen `cohort`, int64 [m]. sample_seconds: float64 [K], of a gradient of one sample."""
        sent: set[int] = set()
        samples, seconds = 0, 0.0
        for clients, counts in self._asked:
            sent |= set(clients.tolist())
            samples += int(counts.sum())
            seconds += float((counts * sample_seconds[clients]).max()) / 3  # a forward pass counts as a third of a gradient
        return SelectionCost(samples, seconds, len(sent - set(cohort.tolist())))


def _samples_of_whole_round(run: PackedRun, J: int | None) -> Indices:
    """Samples that each client would draw in a whole round, int64 [K].

    If J is None, these are the rest of a pass, rounded up to whole steps: batches may straddle two passes, so a round ends with the step
    that completes one.
    """
    e = run.experiment
    if J is None:
        return np.array([-(-(e.train_samples - run.samples % e.train_samples) // e.step_samples) * e.step_samples])
    steps = e.local_steps.of_clients(e.algorithm.round_steps(J), run.speeds[: e.K], e.algorithm.federated, e.seed)
    return steps * e.step_samples


def _seconds_apart(run: PackedRun, ids: Indices, samples: Indices, mixing: list[Reals | None]) -> float:
    """Simulated seconds of a round whose rows take steps independently: they wait for each other at every exchange and at the end."""
    e = run.experiment
    ready, taken = np.zeros(len(ids)), np.zeros_like(samples)
    for step, weights in enumerate(mixing, 1):
        if weights is not None:
            now = np.minimum(samples, step * e.step_samples)
            ready = e.algorithm.wait(ready + (now - taken) * run.step_sample_seconds[ids], weights)
            taken = now
    return float((ready + (samples - taken) * run.step_sample_seconds[ids]).max())


def _seconds_of_shared_steps(run: PackedRun, samples: int) -> float:
    """Simulated seconds of a lone row's round, each step shared among workers (±1 sample) and finished with the slowest of them."""
    workers, size = run.experiment.data_parallel, run.experiment.step_samples
    of_steps = np.minimum(size, samples - np.arange(0, samples, size))[:, None]
    shares = of_steps // workers + (np.arange(workers) < of_steps % workers)
    return float((shares * run.step_sample_seconds).max(1).sum())


def _parts_of_batches(samples: Indices, steps: int, size: int) -> Reals:
    """b / B of each step, float64 [rows, steps], for rows that draw `samples`, int64 [rows], in steps of B = `size` samples.

    The gradient of a small last batch is noisy, and at the full rate it would count as much as that of a whole batch.
    """
    parts: Reals = np.clip(samples[:, None] - np.arange(steps) * size, 0, size) / size
    return parts


def _cut(wanted: Indices, left: int) -> Indices:
    """Samples that each row draws when only `left` remain for all: in proportion to what it wants, rounded to whole samples."""
    total = int(wanted.sum())
    if total <= left:
        return wanted
    shares = wanted * left // total
    first = np.argsort(-(wanted * left % total), kind="stable")[: left - int(shares.sum())]
    shares[first] += 1
    return shares
