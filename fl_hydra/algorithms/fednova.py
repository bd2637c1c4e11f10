"""FedNova (Wang et al., NeurIPS 2020, equations 4 and 5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fl_hydra.algorithms.base import Algorithm, State, algorithms
from fl_hydra.optim.base import Layers

if TYPE_CHECKING:
    from torch import Tensor

    from fl_hydra.seams.clients import Clients, Facts
    from fl_hydra.seams.rows import Batch, Gradient, Rows


@algorithms.register
@dataclass
class FedNova(Algorithm):
    """Each client's change is divided by |a_k|, how much it has worked: x <- x + tau_eff times the mean of (w_k - x) / |a_k|, where
    tau_eff is the mean of |a_k|.

    |a_k| contains the rates: it is how far the client's rule, with momentum and the proximal term, goes along a gradient of 1. With plain
    SGD that is the sum of its rates, or J_k times the rate. So clients that take more steps do not pull the optimum towards their own,
    and steps of a part of a batch count as that part. Coupled weight decay is part of f_k. mu (w - x) is FedProx's term, which momentum
    sees, as in the authors' code, whose |a_k| does not say so. That each client also sends |a_k|, one number, is not charged.
    """

    name: str = "fednova"
    label = "FedNova"
    mu: float = 0.0
    """Strength of the proximal term; 0: none."""

    hyper: ClassVar[tuple[str, ...]] = ("mu",)
    needs_ends: ClassVar[bool] = True
    linear_inside: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self.check_not_negative("mu")

    def client_state(self, models: Tensor, facts: Facts) -> dict[str, Tensor]:
        return {"velocity": models.new_zeros(1, 1), "reach": models.new_zeros(1, 1)}  # of the running round alone

    def step(self, rows: Rows, gradient: Gradient, batches: Sequence[Batch], j: int) -> None:
        local, mu, velocity, reach = rows.optimizer, rows.hyper["mu"], rows.state["velocity"], rows.state["reach"]
        if j == 0:
            velocity.zero_()
            reach.zero_()
        slots, hyper = {"momentum": velocity}, {**local.hyper, "weight_decay": reach.new_zeros(1, 1)}
        local.rule.apply(reach, 1 + mu * reach, slots, hyper, rows.lr[:, j : j + 1], Layers((1,), (True,)))
        pull = (rows.parameters - rows.starts).mul_(mu)
        rows.descend(gradient(rows.parameters, batches[0]).add_(pull), j)

    def update(self, state: State, clients: Clients, starts: Tensor, ends: Tensor) -> None:
        reach = clients.state["reach"]
        effective = clients.sum_sent(reach, clients.weights)
        scale = effective / reach.where(reach != 0, 1)  # a client without samples left has taken no step, and has no weight
        self.outer(state, clients, clients.mean(starts.lerp(ends, scale)))
