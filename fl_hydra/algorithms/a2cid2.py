"""A2CiD2 (Nabli, Belilovsky and Oyallon, NeurIPS 2023, algorithm 1) and its baseline, AD-PSGD (Lian et al., ICML 2018)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from fl_hydra.algorithms.base import State, algorithms
from fl_hydra.algorithms.events import EventDriven, Program, WorkersState
from fl_hydra.arrays import Indices
from fl_hydra.decentralized import topologies
from fl_hydra.decentralized.clocks import Events, Step, acid_constants, edge_rates, meeting_schedule, poisson_events
from fl_hydra.devices import to_device
from fl_hydra.errors import require

if TYPE_CHECKING:
    from torch import Tensor

    from fl_hydra.arrays import Reals
    from fl_hydra.seams.clients import Facts
    from fl_hydra.seams.fabric import Traffic


@dataclass
class AcidState(WorkersState):
    """`model` is the workers' mean. shadows: [runs, K, P], the x~ of every worker."""

    shadows: Tensor


@algorithms.register
@dataclass
class A2CiD2(EventDriven):
    """Workers take gradients and meet in pairs at the ticks of Poisson clocks; in between, each mixes its model with a shadow of it.

    dx = eta (x~ - x) dt,  dx~ = eta (x - x~) dt between events; a gradient's step is applied to both; when i and j meet, m = x_i - x_j,
    x_i <- x_i - m / 2,  x~_i <- x~_i - alpha~ m, and the same for j with -m. eta and alpha~ follow from the graph. Time is
    counted in gradients of a worker of speed 1. At a gradient's event a worker mixes first and takes the gradient at the mixed model, as
    in the paper's equation; the authors' code takes the gradient before mixing, and steps along it from the mixed model.
    """

    name: str = "a2cid2"
    label = "A2CiD2"
    variants: ClassVar[Mapping[str, str]] = {"ad_psgd": "AD-PSGD"}
    J_matters: ClassVar[bool] = False
    topology: str = "ring"
    """Who meets whom: ring, exponential, torus, complete or star (undirected)."""
    rate: float = 1.0
    """Meetings of a worker per gradient at speed 1."""
    accelerated: bool = True
    """Whether models are mixed with their shadows. false: AD-PSGD, the baseline, with eta = 0 and alpha~ = 1/2."""

    def __post_init__(self) -> None:
        require(0 < self.rate <= 1000, f"algorithm.rate={self.rate}: must be greater than 0 meetings for each gradient, and at most 1,000")

    @property
    def option(self) -> str:
        return self.name if self.accelerated else "ad_psgd"

    def check(self, K: int, C: float) -> None:
        super().check(K, C)
        topologies.check(self.topology, K)
        topologies.edges(self.topology, K)

    def events(self, J: int, gradients: int, done: Indices, speeds: Reals, unit: float, seed: int, round: int, began: float) -> Events:
        K = len(speeds)
        drawn = poisson_events(speeds, topologies.edges(self.topology, K), edge_rates(self.topology, K, self.rate), gradients, seed, round)
        return Events(began + unit * drawn.times, drawn.worker, drawn.peer)

    def schedule(self, events: Events) -> list[Step]:
        return meeting_schedule(events)

    def initial(self, models: Tensor, facts: Facts) -> AcidState:
        everywhere = models[:, None].repeat(1, facts.m, 1)
        return AcidState(models, everywhere, everywhere.clone())

    def constants(self, K: int) -> tuple[float, float]:
        """eta, in units of a gradient's time, and alpha~."""
        constants = acid_constants(self.topology, K, self.rate)
        return (constants.eta, constants.alpha_tilde) if self.accelerated else (0.0, 0.5)

    def _mix(self, models: Tensor, shadows: Tensor, workers: Tensor, since: Reals, unit: float) -> None:
        """Mix by exp(dt [[-eta, eta], [eta, -eta]]) models and shadows [K, P] of `workers`, int64 [n]; dt: `since` seconds, float64 [n]."""
        eta, _ = self.constants(len(models))
        if not eta:
            return
        part = to_device((1 - np.exp(-2 * eta / unit * since)) / 2, models.device).to(models.dtype)[:, None]
        way = (shadows[workers] - models[workers]).mul_(part)
        models.index_add_(0, workers, way)
        shadows.index_add_(0, workers, way, alpha=-1)

    def before(self, state: State, run: int, program: Program, positions: Indices) -> None:
        assert isinstance(state, AcidState)
        workers = to_device(program.events.worker[positions], state.model.device)
        self._mix(state.workers[run], state.shadows[run], workers, program.since[positions, 0], program.unit)

    def after(self, state: State, run: int, workers: Tensor, starts: Tensor, ends: Tensor) -> None:
        assert isinstance(state, AcidState)
        super().after(state, run, workers, starts, ends)
        state.shadows[run].index_add_(0, workers, ends - starts)

    def communicate(self, state: State, run: int, program: Program, positions: Indices, traffic: Traffic) -> None:
        assert isinstance(state, AcidState)
        import torch

        models, shadows = state.workers[run], state.shadows[run]
        i, j = (to_device(ends[positions], models.device) for ends in (program.events.worker, program.events.peer))
        both = torch.cat([i, j])
        self._mix(models, shadows, both, program.since[positions].T.reshape(-1), program.unit)
        difference = models[i] - models[j]
        difference = torch.cat([difference, -difference])
        _, alpha = self.constants(len(models))
        models.index_add_(0, both, difference, alpha=-0.5)
        shadows.index_add_(0, both, difference, alpha=-alpha)
        traffic.exchange(2 * len(positions), 0, models[0].numel() * models.element_size())  # nobody waits: gradients are computed meanwhile

    def settle(self, state: State, run: int, program: Program) -> None:
        assert isinstance(state, AcidState)
        models = state.workers[run]
        self._mix(models, state.shadows[run], to_device(np.arange(len(models)), models.device), program.idle, program.unit)
        state.model[run].copy_(models.mean(0))
