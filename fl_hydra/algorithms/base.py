"""The seams of the one loop.

Every method is rounds of: choose participants, give each row its start, J local steps, communicate, outer step. A method is a
dataclass of its hyper-parameters that overrides the seams it changes; the defaults are FedAvg's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fl_hydra.errors import require
from fl_hydra.registry import Component, Registry

if TYPE_CHECKING:
    from torch import Tensor

    from fl_hydra.training.rows import Batch, Clients, Gradient, Rows


@dataclass
class State:
    """What the server, or the group of workers, carries from round to round. Subclass it to carry more tensors.

    model: [runs, P], one row for each run that trains together.
    """

    model: Tensor


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

    keeps_optimizer: ClassVar[bool] = False
    """Whether the local optimizer's slots stay with a client between its rounds, or start from zero in each."""

    client_slots: ClassVar[dict[str, bool]] = {}
    """Further state of each client that outlives a round, in `rows.slots`: True for P numbers, False for one; zero at first."""

    packs: ClassVar[bool] = True
    """Whether several runs can train together: not where an update mixes rows other than through the fabric."""

    def check(self, K: int, C: float) -> None:
        """Refuse K and C that the method cannot run with.

        Raises:
            UserError: naming what works.
        """
        require(K >= 1, f"K={K}: the number of {'clients' if self.federated else 'workers'} must be at least 1")
        require(0 < C <= 1, f"C={C}: the fraction of clients in a round must be above 0 and at most 1")

    def initial(self, models: Tensor) -> State:
        """The state before the first round, from initial models [runs, P]."""
        return State(models)

    def start(self, state: State, clients: Clients) -> Tensor:
        """What every row begins with: [rows, P]."""
        return clients.receive(state.model)

    def step(self, rows: Rows, gradient: Gradient, batches: Sequence[Batch], j: int) -> None:
        """Local step j = 0, 1, ...: change `rows` in place. It is captured: nothing may be read back to the host."""
        rows.descend(gradient(rows.parameters, batches[0]), j)

    def update(self, state: State, clients: Clients, starts: Tensor, ends: Tensor) -> None:
        """How what came back, starts and ends [rows, P], becomes the next state; changes `state` in place.

        Override it where more than the mean of the ends is needed. Where it is not overridden, the mean is taken as the rows
        come in, and they never lie side by side.
        """
        self.outer(state, clients.mean(ends))

    def outer(self, state: State, mean: Tensor) -> None:
        """The outer step from the mean of what came back, [runs, P]; changes `state` in place."""
        state.model.copy_(mean)

    def models(self, state: State) -> Tensor:
        """What is evaluated: [models, P]."""
        return state.model


algorithms: Registry[Algorithm] = Registry("algorithm", "fl_hydra.algorithms")
