"""FedRS (Li and Zhan, KDD 2021): a softmax that is restricted for labels that a client does not have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fl_hydra.algorithms.base import Algorithm, algorithms
from fl_hydra.errors import require

if TYPE_CHECKING:
    from torch import Tensor

    from fl_hydra.seams.rows import Batch, Gradient, Outputs, Rows


@algorithms.register
@dataclass
class FedRS(Algorithm):
    """FedAvg whose clients take the cross-entropy of logits that are multiplied by alpha for labels of which they have no sample.

    The authors' code also scales the other labels, by alpha + (1 - alpha) n_y / max n, clips gradients and leaves the bias of the last
    layer out; here, as in the paper, labels that a client has are not scaled, and the whole logit is. Predictions, and the training
    accuracy, are of the logits themselves.
    """

    name: str = "fedrs"
    label = "FedRS"
    alpha: float = 0.5
    """Factor of the logits of missing labels, from 0 to 1; 1: FedAvg."""

    hyper: ClassVar[tuple[str, ...]] = ("alpha",)
    row_facts: ClassVar[tuple[str, ...]] = ("label_counts",)

    def __post_init__(self) -> None:
        require(0 <= self.alpha <= 1, f"algorithm.alpha={self.alpha}: choose a factor from 0 to 1; 1 is FedAvg")

    def step(self, rows: Rows, gradient: Gradient, batches: Sequence[Batch], j: int) -> None:
        factors = rows.hyper["alpha"].where(rows.facts["label_counts"] == 0, 1.0)
        rows.descend(gradient(rows.parameters, batches[0], restricted, factors=factors), j)


def restricted(outputs: Outputs, targets: Tensor, /, **inputs: Tensor) -> Tensor:
    """Cross-entropies of logits times `factors` [classes]."""
    from fl_hydra.seams.losses import cross_entropies

    return cross_entropies(outputs.logits * inputs["factors"], targets)
