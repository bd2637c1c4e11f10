"""The seams of the one loop.

Every method is rounds of: choose participants, give each row its start, J local steps, communicate, outer step. A method is a
dataclass of its hyper-parameters that overrides the seams it changes; the defaults are FedAvg's.

Where several runs train together, a seam sees one of them at a time: `state` is that run's part of the trainer's memory, to be changed in
place and never rebound, with a leading axis of length 1 where below it says runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from fl_hydra.errors import require
from fl_hydra.optim.base import SlotWidth, optimizers
from fl_hydra.registry import Component, Registry

if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import Self

    from fl_hydra.arrays import Reals
    from fl_hydra.training.fabric import Traffic
    from fl_hydra.training.rows import Batch, Clients, Gradient, Rows


@dataclass
class State:
    """What the server, or the group of workers, carries from round to round. Subclass it to carry more tensors.

    model: [runs, P], one row for each run that trains together. server: the outer optimizer's state by name, [runs, P] or [runs, 1].
    """

    model: Tensor
    server: dict[str, Tensor] = field(default_factory=dict, kw_only=True)

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name, each with a row for each run."""
        named: dict[str, Tensor] = {}
        for part in fields(self):
            value = getattr(self, part.name)
            named |= {f"{part.name}.{name}": tensor for name, tensor in value.items()} if isinstance(value, dict) else {part.name: value}
        return named

    def of_runs(self, runs: Any) -> Self:
        """The state of some runs, by an index that PyTorch understands: of a slice it is this state's own memory, else copies."""

        def take(value: Any) -> Any:
            return {name: tensor[runs] for name, tensor in value.items()} if isinstance(value, dict) else value[runs]

        return replace(self, **{part.name: take(getattr(self, part.name)) for part in fields(self)})


@dataclass
class Algorithm(Component):
    """A method: FedAvg, unless a subclass says otherwise."""

    federated: ClassVar[bool] = True
    """Clients far from a server (averages weigh by shard size), or workers among themselves (equal weights)."""

    K: ClassVar[int | None] = 100
    C: ClassVar[float | None] = 0.1
    J: ClassVar[int | None] = 4
    """Defaults of the top-level keys; None: the key means nothing to this method and is refused."""

    batches_per_step: ClassVar[int] = 1
    """How many batches `step` is given."""

    client_slots: ClassVar[dict[str, SlotWidth]] = {}
    """Further state of each client that outlives a round, in `rows.slots`: "row" for P numbers, "scalar" for one; zero at first. A
    client that drops out has lost its round, and keeps what it had before it."""

    ends_with_mean: ClassVar[bool] = True
    """Whether a round ends with a mean, from which an outer optimizer can step."""

    coupled: ClassVar[bool] = False
    """Whether rows exchange models between the local steps of a round (:meth:`mixing`); all of them then take each step together."""

    own_starts: ClassVar[bool] = False
    """Whether rows begin with what `start` gives them, and not all with the model."""

    needs_ends: ClassVar[bool] = False
    """Whether `update` needs what every row has come to, and not only the mean of that."""

    event_driven: ClassVar[bool] = False
    """Whether a round is a list of events (:class:`fl_hydra.algorithms.events.EventDriven`)."""

    lockstep: ClassVar[bool] = False
    """Whether rows meet within a round after numbers of steps that each of them has to take."""

    synchronous: ClassVar[bool] = True
    """Whether every round begins with equal models and ends with their mean."""

    slowest: ClassVar[float] = math.inf
    """How many times as slow as the fastest a worker may be."""

    def __init_subclass__(cls, **keywords: Any) -> None:
        """
        Raises:
            TypeError: a seam is overridden that nobody calls, since it is not declared.
        """
        super().__init_subclass__(**keywords)
        for seam, declared in (("start", "own_starts"), ("update", "needs_ends")):
            if getattr(cls, seam) is not getattr(Algorithm, seam) and not getattr(cls, declared):
                raise TypeError(f"{cls.__name__} overrides {seam}, which is called where {declared} = True: declare it")

    @property
    def keeps_optimizer(self) -> bool:
        """Whether the local optimizer's slots stay with a client between its rounds, or start from zero in each."""
        return False

    def check(self, K: int, C: float) -> None:
        """Refuse K and C that the method cannot run with.

        Raises:
            UserError: naming what works.
        """
        require(K >= 1, f"K={K}: the number of {'clients' if self.federated else 'workers'} must be at least 1")
        require(0 < C <= 1, f"C={C}: the fraction of clients in a round must be above 0 and at most 1")

    def round_steps(self, J: int) -> int:
        """Local steps of a whole round."""
        return J

    def initial(self, models: Tensor, rows: int) -> State:
        """The state before the first round, from initial models [runs, P]; `rows` take part in a round of each run."""
        return State(models)

    def start(self, state: State, clients: Clients) -> Tensor:
        """Where `own_starts`: what every row begins with, [rows, P]. Without it, each begins with the model."""
        return clients.receive(state.model)

    def step(self, rows: Rows, gradient: Gradient, batches: Sequence[Batch], j: int) -> None:
        """Local step j = 0, 1, ...: change `rows` in place. It is captured: nothing may be read back to the host."""
        rows.descend(gradient(rows.parameters, batches[0]), j)

    def mixing(self, K: int, J: int, j: int, steps: int, taken: int) -> Reals | None:
        """Where `coupled`: the weights float64 [K, K] with which models are mixed after local step j; row k of it makes worker k's model.

        Args:
            J: local steps as the rule for them has it. steps: of this round, as the budget leaves them.
            taken: local steps of the rounds before.

        Returns:
            None if nothing is exchanged after this step.
        """
        return None

    def wait(self, ready: Reals, mixing: Reals) -> Reals:
        """When each worker goes on after an exchange by :meth:`mixing`, float64 [K], by when each was ready for it: when all were."""
        return np.full_like(ready, ready.max())

    def charge(self, traffic: Traffic, mixing: Reals, payload: int) -> None:
        """Enter one exchange by :meth:`mixing` in a run's ledger; `payload` are the bytes of a model."""
        sent = (mixing != 0).sum(0) - (mixing.diagonal() != 0)
        traffic.exchange(int(sent.sum()), int(sent.max()), payload)

    def update(self, state: State, clients: Clients, starts: Tensor, ends: Tensor) -> None:
        """Where `needs_ends`: how what came back, starts and ends [rows, P], becomes the next state; changes `state` in place.

        Without it, the mean is taken as the rows come in, so that they never lie side by side, and `outer` is given it.
        """
        self.outer(state, clients, clients.mean(ends))

    def outer(self, state: State, clients: Clients, mean: Tensor) -> None:
        """The outer step from the mean of what came back, [runs, P]; changes `state` in place."""
        clients.server.step(state.model, state.server, mean)

    def finish(self, state: State, clients: Clients) -> None:
        """What else is communicated at the end of a round, after the outer step."""

    def models(self, state: State) -> Tensor:
        """What is evaluated: [models, P]."""
        return state.model


class _Algorithms(Registry[Algorithm]):
    """Methods, whose client state has names that no optimizer's state has: both lie in `rows.slots`."""

    def register(self, cls: type[Any]) -> type[Any]:
        taken = {name for rule in optimizers.values() for name in rule().slots}
        clash = sorted(taken & cls.client_slots.keys())
        if clash:
            raise TypeError(f"{cls.__name__}.client_slots: {', '.join(clash)} is the name of a slot of an optimizer; choose another")
        return super().register(cls)


algorithms = _Algorithms("algorithm", "fl_hydra.algorithms")
