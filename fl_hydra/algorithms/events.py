"""Asynchronous methods: the same local steps, ordered by a list of events.

The times at which workers finish gradients and meet are drawn beforehand, as a function of the seed and of the workers' speeds. A
round is a fixed block of K J gradients, so that budgets, checkpoints and packs work as for every other method. Independent events are
computed together (:mod:`fl_hydra.decentralized.clocks`), with the same result as one event after the other.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from fl_hydra.algorithms.base import State
from fl_hydra.algorithms.localsgd import Workers
from fl_hydra.arrays import Indices
from fl_hydra.decentralized.clocks import Events, Step

if TYPE_CHECKING:
    from torch import Tensor

    from fl_hydra.arrays import Reals
    from fl_hydra.seams.fabric import Traffic


@dataclass(frozen=True)
class Program:
    """The events of a round of one run.

    events: with times in seconds since training began. schedule: their order, with groups that are computed together. J: the top-level J.
    nth, taken: int64 [events], gradients that the event's worker finished before it, in this round and in total. since: float64
    [events, 2], seconds since the previous event of the worker, and of its peer, or since the round began. idle: float64 [K], seconds from
    each worker's last event to the end. unit: seconds of a gradient at speed 1.
    """

    events: Events
    schedule: list[Step]
    J: int
    nth: Indices
    taken: Indices
    since: Reals
    idle: Reals
    unit: float

    @classmethod
    def of(cls, events: Events, schedule: list[Step], J: int, done: Indices, began: float, unit: float) -> Program:
        """The program of some events, given the gradients that workers have already `done`, int64 [K]."""
        count, last = np.zeros(len(done), np.int64), np.full(len(done), began)
        nth, since = np.zeros(len(events), np.int64), np.zeros((len(events), 2))
        for position, (time, worker, peer) in enumerate(zip(events.times, events.worker, events.peer, strict=True)):
            nth[position] = count[worker]
            since[position] = time - last[[worker, peer]]
            last[worker] = time
            if peer < 0:
                count[worker] += 1
            else:
                last[peer] = time
        return cls(events, schedule, J, nth, done[events.worker] + nth, since, events.times[-1] - last, unit)


@dataclass
class WorkersState(State):
    """Every worker's own model: [runs, K, P]."""

    workers: Tensor


@dataclass
class EventDriven(Workers):
    """Workers that do not wait for each other. Momentum stays with its worker."""

    ends_with_mean: ClassVar[bool] = False
    synchronous: ClassVar[bool] = False
    event_driven: ClassVar[bool] = True

    @abstractmethod
    def events(self, J: int, gradients: int, done: Indices, speeds: Reals, unit: float, seed: int, round: int, began: float) -> Events:
        """The next block of events, in seconds since training began.

        Args:
            J: the top-level J.
            gradients: how many the block has.
            done: int64 [K], gradients that each worker has finished.
            speeds: float64 [K].
            unit: seconds of a gradient at speed 1.
            began: when the block begins, in seconds.
        """

    @abstractmethod
    def schedule(self, events: Events) -> list[Step]:
        """The order in which events are computed, and which of them together."""

    def before(self, state: State, run: int, program: Program, positions: Indices) -> None:
        """Called just before the gradients at these positions are computed at their workers' models."""

    def after(self, state: State, run: int, workers: Tensor, starts: Tensor, ends: Tensor) -> None:
        """Called after a local step of each of these workers, int64 [n], from starts to ends [n, P]; changes `state` in place."""
        assert isinstance(state, WorkersState)
        state.workers[run].index_copy_(0, workers, ends)

    @abstractmethod
    def communicate(self, state: State, run: int, program: Program, positions: Indices, traffic: Traffic) -> None:
        """Process the events at these positions that are not gradients, in order: change `state` in place and record the traffic."""

    def settle(self, state: State, run: int, program: Program) -> None:
        """Called at the end of the block."""
