"""FedSpeed (Sun et al., ICLR 2023, algorithm 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fl_hydra.algorithms.base import algorithms
from fl_hydra.algorithms.fedsam import FedSAM
from fl_hydra.errors import require

if TYPE_CHECKING:
    from torch import Tensor

    from fl_hydra.seams.clients import Facts
    from fl_hydra.seams.rows import Batch, Gradient, Rows


@algorithms.register
@dataclass
class FedSpeed(FedSAM):
    """Clients step along (1 - alpha) g + alpha g' - h + (w - x) / lam, with g' the same batch's gradient at w + rho g / |g|; in the end
    h <- h - (w - x) / lam, and w - lam h is sent. Where nothing moves any more, h is the client's gradient, and the mean of all h is 0.

    The ascent is normalised, as in the paper's experiments and the authors' code, which adds the mean of all clients' -lam h at the server
    where the paper, as here, adds those of the cohort.
    """

    name: str = "fedspeed"
    label = "FedSpeed"
    rho: float = 0.1
    """Distance from the weights at which the second gradient is taken."""
    alpha: float = 1.0
    """Weight of the second gradient; 1 in the authors' code."""
    lam: float = 10.0
    """lambda: 1 / lam, 0.1 in the authors' code, is how strongly clients are held to the server's model."""

    hyper: ClassVar[tuple[str, ...]] = ("rho", "alpha", "lam")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.alpha <= 1, f"algorithm.alpha={self.alpha}: the weight of the second gradient must be between 0 and 1")
        self.check_not_negative("lam")
        require(self.lam > 0, f"algorithm.lam={self.lam}: must be greater than 0; the larger, the looser clients are held")

    def client_state(self, models: Tensor, facts: Facts) -> dict[str, Tensor]:
        return {"correction": models.new_zeros(models.shape)}

    def step(self, rows: Rows, gradient: Gradient, batches: Sequence[Batch], j: int) -> None:
        first = gradient(rows.parameters, batches[0]).clone()
        ahead = self.ahead(rows, first)
        pull = (rows.parameters - rows.starts).div_(rows.hyper["lam"]).sub_(rows.state["correction"])
        mixed = first.lerp_(gradient(ahead, batches[0], metered=False), rows.hyper["alpha"])
        rows.descend(mixed.add_(pull), j)

    def after_steps(self, rows: Rows) -> None:
        rows.state["correction"].sub_((rows.parameters - rows.starts).div_(rows.hyper["lam"]))
        rows.parameters.addcmul_(rows.state["correction"], rows.hyper["lam"], value=-1)
