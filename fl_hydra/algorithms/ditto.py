"""Ditto (Li et al., ICML 2021, algorithm 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fl_hydra.algorithms.base import algorithms
from fl_hydra.algorithms.own_model import OwnModel

if TYPE_CHECKING:
    from fl_hydra.seams.rows import Batch, Gradient, Rows


@algorithms.register
@dataclass
class Ditto(OwnModel):
    """FedAvg, beside which every client trains a model v of its own, held to the one that it was sent: with each batch of its local steps
    v <- v - eta (g(v) + lam (v - w^t)) too, by the local optimizer with slots of its own.

    The paper's s steps of v are J. The authors' code weighs clients equally, where here they are weighed by size.
    """

    name: str = "ditto"
    label = "Ditto"
    lam: float = 0.1
    """lambda: how strongly a client's own model is held to the server's; 0: every client alone."""

    hyper: ClassVar[tuple[str, ...]] = ("lam",)
    gradients_per_batch: ClassVar[float] = 2.0
    stepped: ClassVar[tuple[str, ...]] = ("own",)

    def __post_init__(self) -> None:
        self.check_not_negative("lam")

    def step(self, rows: Rows, gradient: Gradient, batches: Sequence[Batch], j: int) -> None:
        super().step(rows, gradient, batches, j)
        own = rows.state["own"]
        pull = (own - rows.starts).mul_(rows.hyper["lam"])
        rows.descend(gradient(own, batches[0], metered=False).add_(pull), j, of="own")
