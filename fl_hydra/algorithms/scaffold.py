"""SCAFFOLD (Karimireddy et al., ICML 2020, algorithm 1)."""

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
class Scaffold(Algorithm):
    """Each step is corrected by the difference of two control variates: w <- w - lr (g_k(w) - c_k + c).

    Then c <- c + the sum of n_k / n times the changes of c_k (the paper's 1 / N, if shards are equal). eta_g is `server.lr`.
    """

    name: str = "scaffold"
    label = "SCAFFOLD"
    control_option: int = 2
    """What c_k becomes. 1: the gradient over all its samples at x; 2: c_k - c + (x - w) / (sum of its rates), weight decay included."""
    needs_ends: ClassVar[bool] = True
    sgd_inside: ClassVar[bool] = True
    messages: ClassVar[tuple[str, ...]] = ("control",)

    def __post_init__(self) -> None:
        require(self.control_option in (1, 2), f"algorithm.control_option={self.control_option}: choose 1 (a pass over all samples) or 2")

    def initial(self, models: Tensor, facts: Facts) -> State:
        return State(models, carried={"control": models.new_zeros(models.shape)})

    def client_state(self, models: Tensor, facts: Facts) -> dict[str, Tensor]:
        return {"control": models.new_zeros(models.shape)}

    def send(self, state: State, clients: Clients) -> dict[str, Tensor]:
        return state.carried

    def step(self, rows: Rows, gradient: Gradient, batches: Sequence[Batch], j: int) -> None:
        rows.descend(gradient(rows.parameters, batches[0]).add_(rows.received["control"] - rows.state["control"]), j)

    def update(self, state: State, clients: Clients, starts: Tensor, ends: Tensor) -> None:
        control = clients.state["control"]
        if self.control_option == 1:
            change = clients.gradient(state.model) - control
        else:
            moved = clients.rates > 0  # a client without samples left has taken no step
            assert clients.own_ends is not None
            change = (starts - clients.own_ends).div_(clients.rates.where(moved, 1)).sub_(state.carried["control"]).mul_(moved)
        self.outer(state, clients, clients.mean(ends))
        control.add_(change)
        state.carried["control"].add_(clients.sum(change, clients.shares, "control"))
