"""Asynchronous methods: the same local steps, ordered by a list of events.

When each worker finishes a gradient, and when two meet, is drawn beforehand, as a function of the seed and of the workers' speeds. A
round is a fixed block of K J gradients, so that budgets, checkpoints and packs are those of every other method. What does not depend
on each other is computed together (:mod:`fl_hydra.decentralized.clocks`), with the same result as one event after the other.
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

    events: their times in seconds since training began. schedule: in which order what can be done together is done. J: the top-level J.
    nth, taken: int64 [events], how many gradients the event's worker had finished before it, in this round and in all. since: float64
    [events, 2], seconds since the worker's, and the peer's, event before it, or since the round began. idle: float64 [K], seconds from
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
        """The program of some events, by workers that had finished `done` gradients, int64 [K], before them."""
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
        """In which order the events are computed, and what together."""

    def before(self, state: State, run: int, program: Program, positions: Indices) -> None:
        """Just before the gradients at these positions are taken, at the models of their workers."""

    def after(self, state: State, run: int, workers: Tensor, starts: Tensor, ends: Tensor) -> None:
        """A local step of each of these workers, int64 [n], has led from starts to ends, [n, P]; changes `state` in place."""
        assert isinstance(state, WorkersState)
        state.workers[run].index_copy_(0, workers, ends)

    @abstractmethod
    def communicate(self, state: State, run: int, program: Program, positions: Indices, traffic: Traffic) -> None:
        """What happens at these positions, other than gradients, in their order; changes `state` in place and enters it in the ledger."""

    def settle(self, state: State, run: int, program: Program) -> None:
        """The block is over."""
