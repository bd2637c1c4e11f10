"""How alike representations are, and groups of those that are alike."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fl_hydra.arrays import Indices

ITERATIONS = 10
"""Of K-means, at most."""


def gram(features: Tensor) -> Tensor:
    """The centred linear Gram matrix of features [n, ...], divided by its Frobenius norm: float64 [n, n]; 0 of constant features.

    The inner product of two such matrices is their linear CKA (Kornblith et al., ICML 2019, equation 4), and so their squared distance is
    2 - 2 CKA.
    """
    centred = features.flatten(1).double()
    centred = centred - centred.mean(0)
    products = centred @ centred.mT
    norm = products.norm()
    return products / norm if norm > 0 else products


def cka(one: Tensor, other: Tensor) -> Tensor:
    """Linear centred kernel alignment of features [n, ...] of the same n samples, from 0 to 1."""
    return (gram(one) * gram(other)).sum()


def k_means(points: Tensor, clusters: int, generator: np.random.Generator) -> Indices:
    """The cluster of each of some points [n, width], int64 [n]: Lloyd's algorithm, which begins with `clusters` of the points. A cluster
    that loses all its points keeps its centre."""
    chosen = generator.permutation(len(points))[:clusters]
    centres = points[torch.from_numpy(chosen).to(points.device)]
    found = torch.full((len(points),), -1, device=points.device)
    for _ in range(ITERATIONS):
        nearest = torch.cdist(points, centres, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
        if torch.equal(nearest, found):
            break
        found = nearest
        members = F.one_hot(found, len(centres)).to(points.dtype)
        sizes = members.sum(0)[:, None]
        centres = torch.where(sizes > 0, members.mT @ points / sizes.clamp(min=1), centres)
    return np.asarray(found.cpu().numpy(), np.int64)


def agreement(one: Tensor, other: Tensor) -> Tensor:
    """The mean cosine of two models' logits for the same samples, [n, classes]."""
    return F.cosine_similarity(one, other, dim=1).mean()
