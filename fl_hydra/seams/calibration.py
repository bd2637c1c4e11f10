"""Gaussians of features by class, gathered from clients one after the other, and a linear layer that is retrained with draws from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fl_hydra.arrays import Indices

BATCH = 64
"""Features of a step of retraining."""

RIDGE = 1e-6
"""Added to a covariance's diagonal, relative to its mean: with fewer samples than features it is singular, and draws magnify rounding."""


class ClassGaussians:
    """Number, mean and covariance of the features of each class, from those of clients, in float64 on the CPU.

    They are merged as they arrive, and equal those of all features together (Luo et al. 2021, equations 2 and 3; Chan et al. 1979).
    """

    def __init__(self, classes: int, width: int) -> None:
        self.counts = [0] * classes
        self.means = torch.zeros(classes, width, dtype=torch.float64)
        self._scatters = torch.zeros(classes, width, width, dtype=torch.float64)

    def add(self, features: Tensor, targets: Tensor) -> int:
        """Add what one client sends of its features [n, width] and their classes, int64 [n].

        Returns:
            how many numbers that is: for each class that it has, a count, a mean, and half of a symmetric matrix.
        """
        features, targets = features.to("cpu", torch.float64), targets.cpu()
        present: list[int] = torch.unique(targets).tolist()
        for label in present:
            own = features[targets == label]
            n, mean = len(own), own.mean(0)
            total, shift = self.counts[label] + n, mean - self.means[label]
            self._scatters[label] += (own - mean).mT @ (own - mean) + shift.outer(shift) * (self.counts[label] * n / total)
            self.means[label] += shift * (n / total)
            self.counts[label] = total
        width = self.means.shape[1]
        return len(present) * (1 + width + width * (width + 1) // 2)

    def covariance(self, label: int) -> Tensor:
        """Of a class that has samples, [width, width]; 0 if there is only one."""
        return self._scatters[label] / max(1, self.counts[label] - 1)

    def draw(self, count: int, generator: Callable[[int], np.random.Generator]) -> tuple[Tensor, Tensor]:
        """Draw `count` features of each class that has samples, [n, width], and their classes, int64 [n]. generator: of each class."""
        features, labels = [], []
        for label in [label for label, n in enumerate(self.counts) if n]:
            covariance = self.covariance(label)
            ridge = RIDGE * float(covariance.diagonal().mean())
            factor = torch.linalg.cholesky(covariance + ridge * torch.eye(len(covariance), dtype=torch.float64)) if ridge else covariance
            noise = torch.from_numpy(generator(label).standard_normal((count, len(factor))))
            features.append(self.means[label] + noise @ factor.mT)
            labels.append(torch.full((count,), label))
        return torch.cat(features), torch.cat(labels)


def retrain(weight: Tensor, bias: Tensor | None, features: Tensor, labels: Tensor, orders: Sequence[Indices], lr: float) -> None:
    """Train a linear layer, [classes, width] and [classes], in place, by SGD on the cross-entropy of features [n, width].

    Args:
        orders: int64 [n], in which the features are passed through, for each pass.
    """
    trained, offset = weight.to("cpu", torch.float64), torch.zeros(len(weight), dtype=torch.float64)
    offset = offset if bias is None else bias.to("cpu", torch.float64)
    for order in orders:
        for which in torch.split(torch.from_numpy(order), BATCH):
            inputs = features[which]
            errors = (F.softmax(inputs @ trained.mT + offset, 1) - F.one_hot(labels[which], len(trained))) * (lr / len(which))
            trained = trained - errors.mT @ inputs
            offset = offset if bias is None else offset - errors.sum(0)
    weight.copy_(trained)
    if bias is not None:
        bias.copy_(offset)
