"""Gossip SGD (Lian et al., NeurIPS 2017, algorithm 1) and Gossip-PGA (Chen et al., ICML 2021, algorithm 1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fl_hydra.algorithms.base import State, algorithms
from fl_hydra.algorithms.localsgd import LocalSGD
from fl_hydra.decentralized import topologies
from fl_hydra.errors import require

if TYPE_CHECKING:
    from torch import Tensor

    from fl_hydra.arrays import Reals
    from fl_hydra.seams.clients import Clients, Facts


@algorithms.register
@dataclass
class GossipPGA(LocalSGD):
    """After each local step workers mix their models with their neighbours', x_k <- sum_l W_kl x_l; every J-th time with everyone's.

    It steps, then mixes: x_k <- sum_l W_kl (x_l - lr g_l), as Gossip-PGA's algorithm 1 does. Lian et al.'s mixes, then steps along the
    gradient at the previous model: x_k <- sum_l W_kl x_l - lr g_k. Both move the mean in the same way.

    The weights W of a topology are doubly stochastic. J is the paper's period H. With J=1 this is minibatch SGD; with a topology without
    edges, LocalSGD. `local_steps=loss` is the paper's Gossip-AGA, which lengthens the period as the loss falls.

    In simulated time every exchange waits for all workers, not only for neighbours: in a connected graph a slow worker delays the
    others anyway, a few exchanges later.
    """

    name: str = "gossip_pga"
    label = "Gossip-PGA"
    variants: ClassVar[Mapping[str, str]] = {"loss": "Gossip-AGA"}
    topology: str = "ring"
    """Who mixes with whom: ring, exponential, directed_exponential, one_peer_exponential, torus, complete or star."""

    coupled: ClassVar[bool] = True

    def check(self, K: int, C: float) -> None:
        super().check(K, C)
        topologies.check(self.topology, K)

    def mixing(self, K: int, J: int, j: int, steps: int, taken: int) -> Reals | None:
        if K == 1 or j + 1 == steps:  # the round's end averages all workers
            return None
        return topologies.mixing_matrix(self.topology, K, taken + j)


@dataclass
class GossipState(State):
    """Every worker's model: [runs, K, P]. `model` is their mean, which is only evaluated."""

    workers: Tensor


@algorithms.register
@dataclass
class Gossip(GossipPGA):
    """Gossip-PGA without averages over all workers: after each local step workers only mix their models with their neighbours'.

    A round is J such steps, which matters only for evaluations and checkpoints. The mean of the workers' models is evaluated.
    """

    name: str = "gossip"
    label = "Gossip"

    J_matters: ClassVar[bool] = False

    ends_with_mean: ClassVar[bool] = False
    synchronous: ClassVar[bool] = False
    own_starts: ClassVar[bool] = True
    needs_ends: ClassVar[bool] = True

    def check(self, K: int, C: float) -> None:
        super().check(K, C)
        require(
            self.momentum == "keep", f"algorithm.momentum={self.momentum}: algorithm={self.name} never averages all workers; leave it out"
        )

    def mixing(self, K: int, J: int, j: int, steps: int, taken: int) -> Reals | None:
        return None if K == 1 else topologies.mixing_matrix(self.topology, K, taken + j)

    def initial(self, models: Tensor, facts: Facts) -> GossipState:
        return GossipState(models, models[:, None].repeat(1, facts.m, 1))

    def start(self, state: State, clients: Clients) -> Tensor:
        assert isinstance(state, GossipState)
        return state.workers.flatten(0, 1)

    def update(self, state: State, clients: Clients, starts: Tensor, ends: Tensor) -> None:
        assert isinstance(state, GossipState)
        state.workers.copy_(ends.view_as(state.workers))
        state.model.copy_(state.workers.mean(1))
