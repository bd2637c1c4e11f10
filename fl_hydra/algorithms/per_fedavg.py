"""Per-FedAvg (Fallah et al., NeurIPS 2020, algorithm 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from fl_hydra.algorithms.base import Algorithm, algorithms
from fl_hydra.errors import require

if TYPE_CHECKING:
    from torch import Tensor

    from fl_hydra.seams.clients import Clients
    from fl_hydra.seams.rows import Batch, Gradient, Rows


@algorithms.register
@dataclass
class PerFedAvg(Algorithm):
    """A model that suits each client after a step on its own samples: clients step along (I - alpha H(w; D'')) g(w'; D'), with
    w' = w - alpha g(w; D) (equation 7). The local optimizer is the outer one: the paper's beta is `optimizer.lr`.

    D, D' and D'' are independent batches, and each counts in the budget. D' is drawn first: where a last step has samples for nothing else,
    it is FedAvg's. alpha=0 is FedAvg on D'. Before a client is judged, it takes `ft_steps` at rate alpha. There is no code of the authors.
    """

    name: str = "per_fedavg"
    label = "Per-FedAvg"
    order: str = "fo"
    """fo: without the Hessian; hvp: its exact product with the gradient; hf: that product from two gradients 2 delta |g| apart."""
    alpha: float = 0.01
    """Rate of the steps with which a client adapts the model, in training and before it is judged; 0: FedAvg."""
    delta: float = 0.001
    """Half the distance of the two gradients of `order=hf`, in units of the gradient; the others do not use it."""
    ft_steps: int = 1
    """Steps that a client takes on its own samples before it is judged."""

    hyper: ClassVar[tuple[str, ...]] = ("alpha", "delta")

    def __post_init__(self) -> None:
        require(self.order in ("fo", "hvp", "hf"), f"algorithm.order={self.order}: choose fo, hvp or hf")
        self.check_not_negative("alpha", "delta", "ft_steps")
        require(self.delta > 0, "algorithm.delta=0: the two gradients of order=hf would be one; choose a small number above 0")

    def identity(self) -> dict[str, Any]:
        return super().identity() | ({} if self.order == "hf" else {"delta": None})

    @property
    def batches_per_step(self) -> int:
        return 2 if self.order == "fo" else 3

    @property
    def gradients_per_batch(self) -> float:
        return 1.0 if self.order == "fo" else 4 / 3

    @property
    def personalised(self) -> bool:
        return True

    def step(self, rows: Rows, gradient: Gradient, batches: Sequence[Batch], j: int) -> None:
        alpha = rows.hyper["alpha"]
        adapted = rows.parameters.addcmul(gradient(rows.parameters, batches[1]), alpha, value=-1)
        meta = gradient(adapted, batches[0], metered=False).clone()
        if self.order != "fo":
            meta.addcmul_(self._curvature(rows, meta, gradient, batches[2]), alpha, value=-1)
        rows.descend(meta, j)

    def _curvature(self, rows: Rows, vectors: Tensor, gradient: Gradient, batch: Batch) -> Tensor:
        """The Hessian at the rows' parameters times vectors [rows, P]."""
        if self.order == "hvp":
            return gradient.product(rows.parameters, vectors, batch)
        delta = rows.hyper["delta"]
        ahead = gradient(rows.parameters.addcmul(vectors, delta), batch, metered=False).clone()
        behind = gradient(rows.parameters.addcmul(vectors, delta, value=-1), batch, metered=False)
        return ahead.sub_(behind).div_(2 * delta)

    def adapt(self, models: Tensor, clients: Clients) -> Tensor:
        return clients.tune(models, self.ft_steps, clients.hyper["alpha"])
