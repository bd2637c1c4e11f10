"""FedProx (Li et al., MLSys 2020, equation 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fl_hydra.algorithms.base import Algorithm, algorithms

if TYPE_CHECKING:
    from fl_hydra.seams.rows import Batch, Gradient, Rows


@algorithms.register
@dataclass
class FedProx(Algorithm):
    """FedAvg whose clients minimise f_k(w) + mu / 2 |w - x|^2, where x is the server's model: mu (w - x) is added to the gradient.

    The paper asks for an inexact minimum, in any number of steps; here clients take J steps, as in its experiments, or as many as
    `local_steps.spread` gives them. Momentum and adaptive rules see the sum.
    """

    name: str = "fedprox"
    label = "FedProx"
    mu: float = 0.01
    """Strength of the proximal term; 0: FedAvg."""

    hyper: ClassVar[tuple[str, ...]] = ("mu",)

    def __post_init__(self) -> None:
        self.check_not_negative("mu")

    def step(self, rows: Rows, gradient: Gradient, batches: Sequence[Batch], j: int) -> None:
        pull = (rows.parameters - rows.starts).mul_(rows.hyper["mu"])
        rows.descend(gradient(rows.parameters, batches[0]).add_(pull), j)
