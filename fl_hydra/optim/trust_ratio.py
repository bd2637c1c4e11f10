"""What LARS and LAMB share: decay, norms and steps of each weight inside a row; biases and normalisations are left alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fl_hydra.optim.base import Layers

if TYPE_CHECKING:
    from torch import Tensor


def weights_of(vectors: Tensor, layers: Layers) -> list[Tensor]:
    """The weights inside vectors [rows, P], as views [rows, size]."""
    pieces = vectors.split_with_sizes(layers.sizes, dim=1)
    return [piece for piece, is_weight in zip(pieces, layers.weights, strict=True) if is_weight]


def weight_norms(vectors: Tensor, layers: Layers) -> Tensor:
    """The L2 norm of each weight in each row: [rows, P] -> [rows, weights]."""
    import torch

    norms = [torch.linalg.vector_norm(weight, dim=1, keepdim=True) for weight in weights_of(vectors, layers)]
    return torch.cat([vectors[:, :0], *norms], dim=1)  # an empty first part, for rows without a weight


def decay_weights(parameters: Tensor, direction: Tensor, weight_decay: Tensor, layers: Layers) -> None:
    """Add weight_decay [rows, 1] times each weight to its part of `direction` [rows, P], in place."""
    for weight, part in zip(weights_of(parameters, layers), weights_of(direction, layers), strict=True):
        part.addcmul_(weight, weight_decay)


def scale_weights(direction: Tensor, ratios: Tensor, parameter_norms: Tensor, direction_norms: Tensor, layers: Layers) -> None:
    """Multiply each weight's part of `direction` [rows, P] by its trust ratio, or by 1 if either norm is 0, in place.

    ratios, parameter_norms, direction_norms: [rows, weights].
    """
    ratios = ratios.masked_fill((parameter_norms == 0) | (direction_norms == 0), 1)
    for part, ratio in zip(weights_of(direction, layers), ratios[..., None].unbind(1), strict=True):
        part.mul_(ratio)
