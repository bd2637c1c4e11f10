"""Asynchronous workers around a parameter server."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fl_hydra.algorithms.base import State, algorithms
from fl_hydra.algorithms.events import EventDriven, Program, WorkersState
from fl_hydra.arrays import Indices
from fl_hydra.decentralized.clocks import SLOWEST, Events, Step, periodic_events, server_schedule
from fl_hydra.errors import require

if TYPE_CHECKING:
    from torch import Tensor

    from fl_hydra.arrays import Reals
    from fl_hydra.seams.clients import Facts
    from fl_hydra.seams.fabric import Traffic


@dataclass
class ServerState(WorkersState):
    """State with the server's `model`.

    fetched: [runs, K, P], the model that each worker last received. updates: [runs, 1], number of the server's updates so far.
    seen: [runs, K], how many of them each worker's model includes.
    """

    fetched: Tensor
    updates: Tensor
    seen: Tensor


@dataclass
class ParameterServer(EventDriven):
    """Each worker takes J steps and then exchanges with the server, without waiting for others.

    The server's model is evaluated; steps that workers have taken since their last visit are not in it.
    """

    delay: float = 0.0
    """Simulated seconds that sending a model to the server and back takes."""

    J: ClassVar[int | None] = 1
    slowest: ClassVar[float] = SLOWEST

    def __post_init__(self) -> None:
        require(0 <= self.delay < math.inf, f"algorithm.delay={self.delay}: must be 0 seconds or more, and finite")

    def events(self, J: int, gradients: int, done: Indices, speeds: Reals, unit: float, seed: int, round: int, began: float) -> Events:
        return periodic_events(unit / speeds + self.delay / J, done, gradients)

    def schedule(self, events: Events) -> list[Step]:
        return server_schedule(events)

    def initial(self, models: Tensor, facts: Facts) -> ServerState:
        everywhere = models[:, None].repeat(1, facts.m, 1)
        counters = models.new_zeros(len(models), facts.m)
        return ServerState(models, everywhere, everywhere.clone(), counters[:, :1].clone(), counters)

    def communicate(self, state: State, run: int, program: Program, positions: Indices, traffic: Traffic) -> None:
        assert isinstance(state, ServerState)
        for position in positions.tolist():
            if (program.taken[position] + 1) % program.J:
                continue  # the worker continues alone
            k = int(program.events.worker[position])
            staleness = state.updates[run] - state.seen[run, k]
            self.exchange(state.model[run], state.workers[run, k], state.fetched[run, k], staleness, state.workers.shape[1])
            state.fetched[run, k].copy_(state.workers[run, k])
            state.updates[run] += 1
            state.seen[run, k : k + 1].copy_(state.updates[run])
            traffic.visit(state.model[run].numel() * state.model.element_size())

    @abstractmethod
    def exchange(self, server: Tensor, worker: Tensor, fetched: Tensor, staleness: Tensor, K: int) -> None:
        """Exchange between a worker and the server, both [P], changed in place.

        Args:
            fetched: [P], what the worker last received. staleness: [1], updates of the server since then. K: workers.
        """


@algorithms.register
@dataclass
class AsyncSGD(ParameterServer):
    """The server adds a worker's change since it fetched the model: x <- x + (x_k - fetched_k) / (1 + staleness)^power.

    Downpour SGD (Dean et al., NeurIPS 2012) with power=0; with power=1 after staleness-aware SGD (Zhang et al., IJCAI 2016), which divides
    by the staleness; here the divisor is one more, so that no staleness divides by 1. Staleness counts the server's updates in between.
    With one worker this is SGD; equally fast ones take turns, each K - 1 updates late.
    """

    name: str = "async_sgd"
    label = "Async SGD"
    variants: ClassVar[Mapping[str, str]] = {"staleness_aware": "Staleness-aware SGD"}
    power: float = 0.0
    """Exponent of (1 + staleness), which divides an update; 0: no correction, 1: staleness-aware SGD."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.power < math.inf, f"algorithm.power={self.power}: must be 0 (staleness does not matter) or more, and finite")

    @property
    def option(self) -> str:
        return "staleness_aware" if self.power == 1 else self.name

    def exchange(self, server: Tensor, worker: Tensor, fetched: Tensor, staleness: Tensor, K: int) -> None:
        server.addcmul_(worker - fetched, (1 + staleness) ** -self.power)
        worker.copy_(server)


@algorithms.register
@dataclass
class EASGD(ParameterServer):
    """Asynchronous elastic averaging (Zhang, Choromanska and LeCun, NeurIPS 2015, algorithm 1): d = a (x_k - x),
    x_k <- x_k - d, x <- x + d.

    J is the communication period. Workers meet the server after each J-th step; in the paper they meet while computing the gradient of
    the next step.
    """

    name: str = "easgd"
    label = "EASGD"
    elasticity: float = 0.9
    """The paper's beta; a = beta / K."""

    J: ClassVar[int | None] = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.elasticity <= 1, f"algorithm.elasticity={self.elasticity}: above 0 and at most 1 is needed")

    def exchange(self, server: Tensor, worker: Tensor, fetched: Tensor, staleness: Tensor, K: int) -> None:
        pull = (worker - server).mul_(self.elasticity / K)
        worker.sub_(pull)
        server.add_(pull)


@algorithms.register
@dataclass
class SHAT(ParameterServer):
    """After the abstract of SHAT (Ko and Kim, Applied Sciences 2022, 12(1):292): mixing by scale and by heterogeneity.

    We do not know its equations, and do not claim to reproduce its figures. Our reading of "considers the scale of
    distributed training and the heterogeneity among workers": with s the server's updates since the worker's last visit, which is
    K - 1 for equal workers, more for slow ones and less for fast ones, x <- x + (x_k - x) / (1 + s), and then
    x_k <- x_k + (x - x_k) s / (1 + s). The server gives each worker its share of the weight, and a worker moves closer to the server
    the more updates it has missed.
    """

    name: str = "shat"
    label = "SHAT"

    J: ClassVar[int | None] = 4

    def exchange(self, server: Tensor, worker: Tensor, fetched: Tensor, staleness: Tensor, K: int) -> None:
        own = 1 / (1 + staleness)
        server.addcmul_(worker - server, own)
        worker.addcmul_(server - worker, 1 - own)
