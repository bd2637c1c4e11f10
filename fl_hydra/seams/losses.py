"""What losses of batches have in common: cross-entropies, and which targets count."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def cross_entropies(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropies [...] of logits [..., classes]; 0 where the target is negative."""
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="none", ignore_index=-100).view(targets.shape)


def target_mask(targets: Tensor, weights: Tensor | None) -> Tensor | None:
    """Weights of a row's targets, in their shape; None if all count equally. weights: [B], of samples."""
    if targets.dim() == 1:
        return weights
    present = targets >= 0
    return present if weights is None else present * weights[:, None]
