"""FedLC (Zhang et al., ICML 2022): logits calibrated by how many samples of each label a client has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fl_hydra.algorithms.base import Algorithm, algorithms

if TYPE_CHECKING:
    from torch import Tensor

    from fl_hydra.seams.rows import Batch, Gradient, Outputs, Rows

LEAST = 1e-8
"""Samples that a label without any is taken to have, so that its logit is lowered by 100 tau."""


@algorithms.register
@dataclass
class FedLC(Algorithm):
    """FedAvg whose clients take the cross-entropy of the logits f_y - tau n_y^(-1/4), where n_y of their samples have the label y.

    The paper's equation sums over all labels but the right one, which has no lower bound; here, as in public code, the denominator is that
    of a softmax. Predictions, and the training accuracy, are of the logits themselves.
    """

    name: str = "fedlc"
    label = "FedLC"
    tau: float = 1.0
    """How strongly logits are calibrated; 0: FedAvg."""

    hyper: ClassVar[tuple[str, ...]] = ("tau",)
    row_facts: ClassVar[tuple[str, ...]] = ("label_counts",)

    def __post_init__(self) -> None:
        self.check_not_negative("tau")

    def step(self, rows: Rows, gradient: Gradient, batches: Sequence[Batch], j: int) -> None:
        margins = rows.hyper["tau"] * rows.facts["label_counts"].clamp(min=LEAST).pow(-0.25)
        rows.descend(gradient(rows.parameters, batches[0], calibrated, margins=margins), j)


def calibrated(outputs: Outputs, targets: Tensor, /, **inputs: Tensor) -> Tensor:
    """Cross-entropies of logits lowered by `margins` [classes]."""
    from fl_hydra.seams.losses import cross_entropies

    return cross_entropies(outputs.logits - inputs["margins"], targets)
