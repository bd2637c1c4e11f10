"""Last linear layers: their logits and gradients, from the features that they get."""

from __future__ import annotations

import torch
from torch import Tensor

from fl_hydra.seams.rows import Batch, Outputs


def head_logits(features: Tensor, heads: Tensor, classes: int) -> Tensor:
    """Logits [rows, B, classes] of linear layers for features [rows, B, width].

    Args:
        heads: [rows, numbers], the weights of each row's layer, followed by its biases if it has some.
    """
    weights = classes * features.shape[-1]
    logits = features @ heads[:, :weights].view(len(heads), classes, -1).mT
    return logits + heads[:, None, weights:] if heads.shape[1] > weights else logits


def head_gradient(outputs: Outputs, batch: Batch, width: int) -> Tensor:
    """The gradient of each row's mean cross-entropy with respect to its last linear layer, which gave the logits: [rows, width].

    Args:
        outputs: of the rows' models for the batch, whose samples have one target each.
        width: numbers of the layer: those of its weight, and of its bias if it has one that is trained.
    """
    labels = torch.arange(outputs.logits.shape[-1], device=outputs.logits.device)
    errors = outputs.logits.softmax(-1) - (batch.targets[..., None] == labels).to(outputs.logits.dtype)
    if batch.weights is None:
        errors = errors / errors.shape[1]
    else:
        errors = errors * (batch.weights / batch.weights.sum(1, keepdim=True).clamp(min=1))[..., None]
    weight = (errors.mT @ outputs.features).flatten(1)
    return torch.cat([weight, errors.sum(1)], 1) if width > weight.shape[1] else weight
