"""LocalSGD (Stich, ICLR 2019; Lin et al., ICLR 2020, algorithm 1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fl_hydra.algorithms.base import Algorithm, State, algorithms
from fl_hydra.errors import require

if TYPE_CHECKING:
    from fl_hydra.seams.clients import Clients

POLICIES = ("keep", "reset", "average")


@dataclass
class Workers(Algorithm):
    """K workers, all of which take part in every round, with equal weights."""

    federated: ClassVar[bool] = False
    K: ClassVar[int | None] = 4
    C: ClassVar[float | None] = 1.0
    J: ClassVar[int | None] = 8

    @property
    def keeps_optimizer(self) -> bool:
        return True

    def check(self, K: int, C: float) -> None:
        super().check(K, C)
        require(C == 1, f"C={C}: with algorithm={self.name} all workers take part in every round; leave C out")


@algorithms.register
@dataclass
class LocalSGD(Workers):
    """All K workers take J steps each from the common model; then their models are averaged with equal weights.

    momentum: what becomes of the local optimizer's state when models are averaged. `keep`: it stays with its worker, neither averaged
    nor reset, as in the authors' code. `reset`: every round begins with zeros. `average`: it is averaged like the models (Yu et al.,
    ICML 2019, algorithm 1), which is also communicated; step counters are not averaged. With J=1 all but `reset` are minibatch SGD
    with momentum over the K batches together, since the recursion is linear.
    """

    name: str = "localsgd"
    label = "LocalSGD"
    variants: ClassVar[Mapping[str, str]] = {"post_local": "Post-local SGD"}
    momentum: str = "keep"
    """What becomes of the local optimizer's state when models are averaged: keep, reset or average."""

    def __post_init__(self) -> None:
        require(self.momentum in POLICIES, f"algorithm.momentum={self.momentum}: choose keep, reset or average")

    @property
    def keeps_optimizer(self) -> bool:
        return self.momentum != "reset"

    @property
    def takes_uplink(self) -> bool:
        return super().takes_uplink and self.momentum != "average"

    def finish(self, state: State, clients: Clients) -> None:
        if self.momentum == "average":
            for name, slot in clients.slots.items():
                if slot.shape[1] == state.model.shape[1]:
                    slot.copy_(clients.receive(clients.mean(slot, name)))
