"""Labels of the nearest of some samples, by their features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

NUMBERS_AT_ONCE = 2**22
"""Distances, or weights of neighbours by class, that are in memory together."""


@dataclass(frozen=True)
class Memory:
    """Samples that others are compared with: features [m, width], and their labels, int64 [m]."""

    features: Tensor
    labels: Tensor

    def nearest(self, features: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k samples that are nearest to each of some features [n, width]: squared Euclidean distances, ascending, and labels, [n, k].

        Distances are sums of squared differences, by which a sample is at 0 from itself; by products of matrices it would not be.
        """
        distances = torch.cdist(features, self.features, compute_mode="donot_use_mm_for_euclid_dist")
        found, which = distances.topk(k, largest=False)
        return found.square(), self.labels[which]

    def probabilities(self, features: Tensor, ks: Sequence[int], scale: Tensor, classes: int) -> Tensor:
        """The labels of the k nearest, weighted by exp(-squared distance / (width scale)), for each of `ks`, which are at most m.

        Args:
            features: [n, width]. scale: one number; infinite: all k weigh the same.

        Returns:
            [ks, n, classes], of sum 1.
        """
        most, every = max(ks), torch.arange(classes, device=self.labels.device)
        parts = []
        for part in torch.split(features, max(1, NUMBERS_AT_ONCE // max(len(self.features), most * classes))):
            distances, labels = self.nearest(part, most)
            exponents, of_class = -distances / (features.shape[1] * scale), labels[..., None] == every
            found = [(exponents[:, None, :k].softmax(-1) @ of_class[:, :k].to(exponents.dtype)).squeeze(1) for k in ks]
            parts.append(torch.stack(found))
        return torch.cat(parts, 1)


def mixed(logits: Tensor, others: Tensor, weights: Tensor) -> Tensor:
    """Logits of a mixture: a weight times other probabilities, plus the rest times those of logits.

    It is computed as logarithms, up to one number for each sample: with weight 0 these are the logits themselves, to the last bit. Other
    probabilities of 0 count as the smallest positive number, so that losses stay finite.

    Args:
        logits: [n, classes]. others: [choices, n, classes]. weights: [weights], from 0 to 1.

    Returns:
        [choices * weights, n, classes].
    """
    logarithms = others.clamp(min=torch.finfo(others.dtype).tiny).log() + logits.logsumexp(-1, keepdim=True)
    own, rest = weights[:, None, None].log(), (1 - weights[:, None, None]).log()
    return torch.logaddexp(rest + logits, own + logarithms[:, None]).flatten(0, 1)
