"""FedDecorr (Shi et al., ICLR 2023): features that do not correlate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fl_hydra.algorithms.base import Algorithm, algorithms

if TYPE_CHECKING:
    from torch import Tensor

    from fl_hydra.seams.rows import Batch, Gradient, Outputs, Rows

EPSILON = 1e-8
"""Added to variances, as in the authors' code: some features are the same for all samples of a batch."""


@algorithms.register
@dataclass
class FedDecorr(Algorithm):
    """FedAvg whose clients add beta / d^2 |K|_F^2 to the loss of a batch, where K is the correlation matrix of its d features, the inputs
    of the last linear layer.

    K's diagonal is constant and left out. The authors' code adds beta (B - 1)^2 / B times the mean square of K's other entries for a batch
    of B samples: its beta of 0.1 with 64 samples is 6.2 here.
    """

    name: str = "feddecorr"
    label = "FedDecorr"
    beta: float = 0.1
    """Weight of the correlations; 0: FedAvg."""

    hyper: ClassVar[tuple[str, ...]] = ("beta",)
    reads_features: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self.check_not_negative("beta")

    def step(self, rows: Rows, gradient: Gradient, batches: Sequence[Batch], j: int) -> None:
        beta = rows.hyper["beta"][:, 0]
        rows.descend(gradient(rows.parameters, batches[0], decorrelated, whole=True, beta=beta), j)


def decorrelated(outputs: Outputs, targets: Tensor, /, weights: Tensor | None = None, **inputs: Tensor) -> Tensor:
    """The mean cross-entropy of a batch plus `beta` times its features' squared correlations, by the targets that count."""
    from fl_hydra.seams.losses import cross_entropies, target_mask

    features, losses, mask = outputs.features.flatten(0, -2), cross_entropies(outputs.logits, targets), target_mask(targets, weights)
    present = features.new_ones(len(features)) if mask is None else mask.flatten().to(features.dtype)
    shares = (present / present.sum().clamp(min=1))[:, None]
    centred = features - (shares * features).sum(0)
    covariance = centred.mT @ (shares * centred)
    deviations = (covariance.diagonal() + EPSILON).sqrt()
    correlation = covariance / (deviations[:, None] * deviations)
    return (losses.flatten() * shares[:, 0]).sum() + inputs["beta"] * 2 * correlation.triu(1).square().sum() / features.shape[1] ** 2
