"""FedDC (Gao et al., CVPR 2022, algorithm 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fl_hydra.algorithms.base import Algorithm, State, algorithms

if TYPE_CHECKING:
    from torch import Tensor

    from fl_hydra.seams.clients import Clients, Facts
    from fl_hydra.seams.rows import Batch, Gradient, Rows


@algorithms.register
@dataclass
class FedDC(Algorithm):
    """Clients minimise f_k(w) + alpha / 2 |w + h_k - x|^2 + <c - c_k, w>, where h_k is how far client k has drifted: h_k <- h_k + w_k - x.

    x becomes the mean of w_k plus the mean of all h_k. The last term is what the authors' code computes for the paper's
    <g_k - g, w> / (eta K): SCAFFOLD's correction, c_k <- c_k - c + (x - w_k) / (sum of its rates). h and c are means over all clients,
    weighted by samples (the paper's 1 / N, if shards are equal). The server works them out from the w_k that it is sent.
    """

    name: str = "feddc"
    label = "FedDC"
    alpha: float = 0.01
    """Strength of the penalty on drift, the paper's lambda; 0: no penalty."""

    hyper: ClassVar[tuple[str, ...]] = ("alpha",)
    needs_ends: ClassVar[bool] = True
    own_server: ClassVar[bool] = True
    sgd_inside: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self.check_not_negative("alpha")

    def initial(self, models: Tensor, facts: Facts) -> State:
        return State(models, carried={name: models.new_zeros(models.shape) for name in ("drift", "control")})

    def client_state(self, models: Tensor, facts: Facts) -> dict[str, Tensor]:
        return {name: models.new_zeros(models.shape) for name in ("drift", "control")}

    def send(self, state: State, clients: Clients) -> dict[str, Tensor]:
        return {"control": state.carried["control"]}

    def step(self, rows: Rows, gradient: Gradient, batches: Sequence[Batch], j: int) -> None:
        pull = (rows.parameters - rows.starts).add_(rows.state["drift"]).mul_(rows.hyper["alpha"])
        pull.add_(rows.received["control"]).sub_(rows.state["control"])
        rows.descend(gradient(rows.parameters, batches[0]).add_(pull), j)

    def update(self, state: State, clients: Clients, starts: Tensor, ends: Tensor) -> None:
        assert clients.own_ends is not None
        moved, sent = clients.own_ends - starts, ends - starts
        clients.state["drift"].add_(moved)
        clients.state["control"].add_(self.control_change(moved, state, clients))
        change = clients.sum_sent(self.control_change(sent, state, clients), clients.shares)
        state.carried["drift"].add_(clients.sum_sent(sent, clients.shares))
        state.carried["control"].add_(change)
        state.model.copy_(clients.mean(ends) + state.carried["drift"])

    def control_change(self, moved: Tensor, state: State, clients: Clients) -> Tensor:
        """(x - w_k) / (sum of its rates) - c, [rows, P]; 0 for a client that had no samples left, and took no step."""
        stepped = clients.rates > 0
        return (-moved / clients.rates.where(stepped, 1) - state.carried["control"]) * stepped
