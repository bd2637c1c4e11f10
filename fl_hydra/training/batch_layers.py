"""BatchNorm and dropout, as functions of a row's batch: no module changes, and nothing is drawn from a generator.

So both can be transformed by `torch.func`, are the same in every engine, and can be recorded in graphs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fl_hydra.randomness import hash_uniform

_ALPHA = 1.7580993408473766
"""Minus the limit of SELU at minus infinity, to which alpha dropout sets what it drops (Klambauer et al., NeurIPS 2017)."""

_DROPOUTS = {
    F.dropout: (False, False),
    F.alpha_dropout: (False, True),
    **dict.fromkeys((F.dropout1d, F.dropout2d, F.dropout3d), (True, False)),
    F.feature_alpha_dropout: (True, True),
}
"""Whether each drops whole channels, and whether it keeps mean and variance as alpha dropout does."""


class BatchLayers(TorchFunctionMode):
    """Takes the place of `F.batch_norm` and of PyTorch's dropouts in one forward pass of one row.

    Statistics are computed in `dtype`, without padding. A sample's mask is a function of the sample's number, the dropout's position in the
    pass, and the element; it depends on no other sample.

    Args:
        dtype: of statistics; that of the rows, even if layers compute in a lower precision.
        statistics: running means and variances by name, as the module holds them; the batch's own are recorded under these names.
        weights: 1 for samples and 0 for padding, [B]; None without padding.
        draws: 32-bit numbers that identify the draws of each sample, int64 [B]; None in evaluation.
        fixed: whether BatchNorm uses the running statistics in training, too.
    """

    def __init__(
        self,
        dtype: torch.dtype,
        statistics: Mapping[str, Tensor] | None = None,
        weights: Tensor | None = None,
        draws: Tensor | None = None,
        fixed: bool = False,
    ) -> None:
        super().__init__()
        self._dtype, self._running, self._weights, self._draws = dtype, dict(statistics or {}), weights, draws
        self._names = {id(tensor): name for name, tensor in self._running.items()}
        self._found: dict[str, Tensor] = {}
        self._fixed = fixed
        self.dropouts = 0
        """Number of dropouts so far in the pass."""
        self.per_sample = 2**62
        """The fewest elements per channel and sample in any input of a BatchNorm in training."""

    @property
    def used(self) -> bool:
        """Whether the pass had such a layer in training."""
        return bool(self._found) or self.dropouts > 0

    @property
    def statistics(self) -> Tensor:
        """The batch's means and unbiased variances, in the order of the running ones, [size]; of layers without any, the running ones."""
        return torch.cat([self._found.get(name, running).detach() for name, running in self._running.items()])

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is F.batch_norm:
            return self._batch_norm(*args, **(kwargs or {}))
        if function in _DROPOUTS:
            return self._dropout(*_DROPOUTS[function], *args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))

    def _batch_norm(
        self,
        input: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        values = input.to(self._dtype)
        if training and not self._fixed:
            mean, variance, count = _moments(values, self._weights)
            self._note(running_mean, mean)
            # A single number has no variance; then the running one stays.
            self._note(running_var, torch.where(count > 1, variance * (count / (count - 1).clamp(min=1)), running_var))
            self.per_sample = min(self.per_sample, math.prod(input.shape[2:]))
        else:
            mean, variance = running_mean.to(self._dtype), running_var.to(self._dtype)
        shape = (-1, *(1,) * (values.dim() - 2))
        scale = torch.rsqrt(variance + eps)
        if weight is not None:
            scale = scale * weight.to(self._dtype)
        out = (values - mean.view(shape)) * scale.view(shape)
        if bias is not None:
            out = out + bias.to(self._dtype).view(shape)
        return out.to(input.dtype)

    def _note(self, running: Tensor, found: Tensor) -> None:
        name = self._names.get(id(running))
        if name is None:
            raise ValueError("F.batch_norm takes statistics of a batch in evaluation, or without nn.BatchNorm that keeps running ones")
        if name in self._found:
            raise ValueError(f"{name} belongs to two places of a forward pass; give each a BatchNorm of its own")
        self._found[name] = found

    def _dropout(self, channels: bool, alpha: bool, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not training or p == 0:
            return input
        if self._draws is None:
            raise ValueError("a dropout is on in evaluation; give it training=self.training")
        if len(input) != len(self._draws):
            raise ValueError(f"a dropout gets {tuple(input.shape)} for {len(self._draws)} samples; their axis must be the first")
        shape = (*input.shape[:2], *(1,) * (input.dim() - 2)) if channels else input.shape
        streams = hash_uniform(self._draws, torch.full_like(self._draws, self.dropouts))[:, None]
        self.dropouts += 1
        elements = torch.arange(math.prod(shape[1:]), device=input.device)
        kept = (hash_uniform(streams, elements) >= round(p * 2**32)).view(shape).to(input.dtype)
        if not alpha:
            scale = kept / (1 - p) if p < 1 else kept
            return input.mul_(scale) if inplace else input * scale
        factor = 1 / math.sqrt((1 - p) * (1 + p * _ALPHA**2)) if p < 1 else 0.0
        scale, shift = kept * factor, (kept - (1 - p)) * (_ALPHA * factor)
        return input.mul_(scale).add_(shift) if inplace else input * scale + shift


def _moments(values: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance of each channel of [B, channels, ...], and the number of elements behind them."""
    axes = [0, *range(2, values.dim())]
    each = math.prod(values.shape[2:])
    if weights is None:
        variance, mean = torch.var_mean(values, axes, correction=0)
        return mean, variance, torch.full((), len(values) * each, dtype=values.dtype, device=values.device)
    mask = weights.to(values.dtype).view(-1, *(1,) * (values.dim() - 1))
    count = mask.sum() * each
    mean = (values * mask).sum(axes) / count.clamp(min=1)
    away = values - mean.view(-1, *(1,) * (values.dim() - 2))
    return mean, (away.square() * mask).sum(axes) / count.clamp(min=1), count
