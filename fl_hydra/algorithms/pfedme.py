"""pFedMe (Dinh et al., NeurIPS 2020, algorithm 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fl_hydra.algorithms.base import State, algorithms
from fl_hydra.algorithms.own_model import OwnModel
from fl_hydra.errors import require

if TYPE_CHECKING:
    from torch import Tensor

    from fl_hydra.seams.clients import Clients
    from fl_hydra.seams.rows import Batch, Gradient, Rows


@algorithms.register
@dataclass
class PFedMe(OwnModel):
    """Clients minimise Moreau envelopes: with each batch theta comes near the minimum of f(theta) + lam / 2 |theta - w|^2, and then w steps
    along lam (w - theta), by the local optimizer. The server moves to (1 - beta) x + beta mean. Clients are judged with theta.

    theta starts from w in each round and goes on from step to step, as in the authors' code. That also decays theta by 0.001, trains all
    clients in each round and averages a part of them, and judges w, with which it overwrites theta. No gradient is at w after a round's
    first step, so that what is metered is of theta before it moves with a batch: training curves, and BatchNorm's running statistics.
    """

    name: str = "pfedme"
    label = "pFedMe"
    lam: float = 15.0
    """lambda: how strongly theta is held to w."""
    beta: float = 1.0
    """How far the server moves to the mean of what clients return; 1: all the way."""
    inner_steps: int = 5
    """K: gradient steps of theta with each batch, each of which costs a gradient."""
    inner_lr: float = 0.05
    """Learning rate of theta's steps, which no schedule changes."""

    hyper: ClassVar[tuple[str, ...]] = ("lam", "beta", "inner_lr")
    own_server: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self.check_not_negative(*self.hyper)
        require(self.inner_steps >= 1, f"algorithm.inner_steps={self.inner_steps}: theta takes at least 1 step with each batch")

    @property
    def gradients_per_batch(self) -> float:
        return float(self.inner_steps)

    def step(self, rows: Rows, gradient: Gradient, batches: Sequence[Batch], j: int) -> None:
        theta, lam, batch = rows.state["own"], rows.hyper["lam"], batches[0]
        rows.state["trained"].fill_(1)
        if j == 0:
            theta.copy_(rows.parameters)
        # As rates are: b of B samples take b / B of a step.
        rate = rows.hyper["inner_lr"] if batch.weights is None else rows.hyper["inner_lr"] * batch.weights.mean(1, keepdim=True)
        for inner in range(self.inner_steps):
            pull = (theta - rows.parameters).mul_(lam)
            theta.addcmul_(gradient(theta, batch, metered=inner == 0).add_(pull), rate, value=-1)
        rows.descend((rows.parameters - theta).mul_(lam), j)

    def outer(self, state: State, clients: Clients, mean: Tensor) -> None:
        state.model.lerp_(mean, clients.hyper["beta"])
