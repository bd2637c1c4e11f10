"""What a run does in its next round: a function of its configuration and of how far it has come."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
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
    """What it took that clients were asked for losses before the cohort was chosen.

    samples: of forward passes. seconds: simulated. downloads: models sent to clients that are not in the cohort.
    """

    samples: int = 0
    seconds: float = 0.0
    downloads: int = 0


@dataclass(frozen=True)
class RoundPlan:
    """A round of one run.

    ids: int64 [rows], the cohort. samples: int64 [rows], what each draws. steps: local steps of the row with most samples.
    rates: float64 [rows, steps], learning rates that are taken: the schedule's, times b / B in a step of b of its B samples. mean_rate,
    last_rate: of the schedule's rates over the round's steps, without that factor, the mean and the last. weights: float64 [rows], of
    the mean, summing to 1; 0 for who drops out. mixing: what is exchanged after each step, float64 [rows, rows], or None for nothing.
    end_time: simulated seconds at which the round is over.
    J: local steps that the rule for them has chosen; None where a round is a pass. program: the events of an asynchronous round.
    seen: what the participation scheme saw. remember: what of its memory changes. selection: what choosing the cohort took.
    residual_weight: how much of the old model is in the mean; not 0 where the weights do not sum to 1.
    reports: bool [rows], who does not drop out; None: everyone.
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


def plan_round(run: PackedRun, losses: Losses = no_losses) -> RoundPlan:
    """The next round of a run. It changes nothing: :meth:`PackedRun.begin` and :meth:`PackedRun.advance` do.

    Args:
        losses: of the present model, for schemes that ask for them.
    """
    e = run.experiment
    J = None if e.J is None else e.local_steps.steps(e.J, run.samples / e.budget, run.traffic.steps, run.memory)
    work = _samples_of_whole_round(run, J)
    queries = _QueryAccount(losses, run.shard_sizes)
    seen = Round(
        run.shard_sizes, e.m, e.seed, run.round, e.gamma, work * run.step_sample_seconds[: e.K], dict(run.scheme_state), queries.losses
    )
    cohort = e.participation.cohort(seen)
    ids, wanted = cohort.ids, work[cohort.ids]
    selection = queries.cost(ids, run.sample_seconds)
    # The last round is cut: what remains of the budget is spread over the rows.
    samples = _cut(wanted, e.budget - run.samples)
    steps = -(-int(samples.max()) // e.step_samples)
    done = run.samples + np.minimum(samples[:, None], np.arange(steps + 1) * e.step_samples).sum(0)
    factors = [e.scheduler.factor(int(before), int(after - before), e.budget, e.batch_size) for before, after in pairwise(done)]
    mixing = [e.algorithm.mixing(len(ids), J, j, steps, run.traffic.steps) if J is not None else None for j in range(steps)]
    # Of a whole round every row counts alike, however many steps it took; of a cut one, as far as it came.
    by_size = samples * (wanted.max() / wanted) * (run.shard_sizes[ids] if e.algorithm.federated else 1.0)
    reports = e.participation.reports(ids, e.seed, run.round)
    weights = (by_size if cohort.weights is None else cohort.weights) * reports
    residual_weight = 0.0
    if not weights.any():  # nobody reports, or of a cut round only those that had no sample left
        reports = np.zeros_like(reports)
    elif cohort.weights is not None and e.participation.weighs:
        # Whether a client drops out does not depend on what it would report: divided by how likely that is, the sum stays unbiased.
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
    )


def plan_events(run: PackedRun, algorithm: EventDriven) -> RoundPlan:
    """The next block of events of an asynchronous method. It has K J gradients; the last block, as many as the budget leaves."""
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
    rates = np.zeros((K, int(nth.max()) + 1))
    for position, (worker, step) in enumerate(zip(workers, nth, strict=True)):
        rates[worker, step] = e.peak_lr * e.scheduler.factor(run.samples + position * size, size, e.budget, e.batch_size)
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
    """Passes a scheme's queries for losses on, and keeps an account of them.

    Args:
        losses: answers them. sizes: int64 [K], samples of each client.
    """

    def __init__(self, losses: Losses, sizes: Indices) -> None:
        self._losses, self._sizes = losses, sizes
        self._asked: list[tuple[Indices, Indices]] = []

    def losses(self, ids: Indices, samples: int | None) -> Reals:
        """Mean losses of some clients, int64 [n], on all or on so many of their samples: float64 [n]."""
        counts = self._sizes[ids]
        self._asked.append((ids, counts if samples is None else np.minimum(counts, samples)))
        return self._losses(ids, samples)

    def cost(self, cohort: Indices, sample_seconds: Reals) -> SelectionCost:
        """What all queries took, if `cohort`, int64 [m], was chosen. sample_seconds: float64 [K], of a gradient of one sample."""
        sent: set[int] = set()
        samples, seconds = 0, 0.0
        for clients, counts in self._asked:
            sent |= set(clients.tolist())
            samples += int(counts.sum())
            seconds += float((counts * sample_seconds[clients]).max()) / 3  # a forward pass is taken for a third of what a gradient takes
        return SelectionCost(samples, seconds, len(sent - set(cohort.tolist())))


def _samples_of_whole_round(run: PackedRun, J: int | None) -> Indices:
    """Samples that each client would draw in a whole round, int64 [K].

    Where J is None that is the rest of a pass over the samples, made up of whole steps: batches run across the border of two passes, so
    a round ends with the first step that completes one.
    """
    e = run.experiment
    if J is None:
        return np.array([-(-(e.train_samples - run.samples % e.train_samples) // e.step_samples) * e.step_samples])
    steps = e.local_steps.of_clients(e.algorithm.round_steps(J), run.speeds[: e.K], e.algorithm.federated, e.seed)
    return steps * e.step_samples


def _seconds_apart(run: PackedRun, ids: Indices, samples: Indices, mixing: list[Reals | None]) -> float:
    """Simulated seconds of a round whose rows take their own steps: they wait for each other at every exchange, and at the end."""
    e = run.experiment
    ready, taken = np.zeros(len(ids)), np.zeros_like(samples)
    for step, weights in enumerate(mixing, 1):
        if weights is not None:
            now = np.minimum(samples, step * e.step_samples)
            ready = e.algorithm.wait(ready + (now - taken) * run.step_sample_seconds[ids], weights)
            taken = now
    return float((ready + (samples - taken) * run.step_sample_seconds[ids]).max())


def _seconds_of_shared_steps(run: PackedRun, samples: int) -> float:
    """Simulated seconds of a lone row's round of steps, each shared among workers (±1 sample) and over when the slowest is ready."""
    workers, size = run.experiment.data_parallel, run.experiment.step_samples
    of_steps = np.minimum(size, samples - np.arange(0, samples, size))[:, None]
    shares = of_steps // workers + (np.arange(workers) < of_steps % workers)
    return float((shares * run.step_sample_seconds).max(1).sum())


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
