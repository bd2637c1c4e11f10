"""FedDyn (Acar et al., ICLR 2021, algorithm 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fl_hydra.algorithms.base import Algorithm, State, algorithms
from fl_hydra.errors import require

if TYPE_CHECKING:
    from torch import Tensor

    from fl_hydra.seams.clients import Clients, Facts
    from fl_hydra.seams.rows import Batch, Gradient, Rows


@algorithms.register
@dataclass
class FedDyn(Algorithm):
    """Clients minimise f_k(w) - <h_k, w> + alpha / 2 |w - x|^2; then h_k <- h_k - alpha (w_k - x), which comes to its gradient.

    The server: h <- h - alpha times the sum of n_k / n (w_k - x), where n counts the samples of all clients (the paper's 1 / m, if shards
    are equal); x <- the mean of w_k - h / alpha. So h is the mean of all h_k, and x rests only at the optimum of the mean of f_k. What is
    evaluated is x, as in the paper; the authors' code evaluates the mean of w_k. Clients without a step keep h_k.
    """

    name: str = "feddyn"
    label = "FedDyn"
    alpha: float = 0.01
    """Strength of the dynamic regulariser, above 0."""

    hyper: ClassVar[tuple[str, ...]] = ("alpha",)
    needs_ends: ClassVar[bool] = True
    own_server: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self.check_not_negative("alpha")
        require(self.alpha > 0, "algorithm.alpha=0: FedDyn divides by alpha, which must be above 0; algorithm=fedavg does without it")

    def initial(self, models: Tensor, facts: Facts) -> State:
        return State(models, carried={"h": models.new_zeros(models.shape)})

    def client_state(self, models: Tensor, facts: Facts) -> dict[str, Tensor]:
        return {"h": models.new_zeros(models.shape)}

    def step(self, rows: Rows, gradient: Gradient, batches: Sequence[Batch], j: int) -> None:
        pull = (rows.parameters - rows.starts).mul_(rows.hyper["alpha"]).sub_(rows.state["h"])
        rows.descend(gradient(rows.parameters, batches[0]).add_(pull), j)

    def update(self, state: State, clients: Clients, starts: Tensor, ends: Tensor) -> None:
        alpha, moved = clients.hyper["alpha"], ends - starts
        assert clients.own_ends is not None
        clients.state["h"].sub_(alpha * (clients.own_ends - starts))
        state.carried["h"].sub_(alpha * clients.sum_sent(moved, clients.shares))
        state.model.copy_(clients.mean(ends) - state.carried["h"] / alpha)
