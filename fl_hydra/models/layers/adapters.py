"""Residual adapters (Rebuffi et al., CVPR 2018): small matrices beside the layers of a model, which change nothing at first."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

NAMES = ("adapter", "adapter_down", "adapter_up")
"""Parameters that are added to a layer: one matrix, or two of a lower rank."""


def is_adapter(name: str) -> bool:
    """Whether a parameter, by its name in a model, is one of an adapter."""
    return name.rpartition(".")[2] in NAMES


def add_adapters(module: nn.Module, rank: int) -> int:
    """Add an adapter to every Conv2d and Linear of a model, in place; layers derived from these are left alone. The number of adapters.

    The layers keep their names, weights and types' names. What is added is beside the layer: a linear map of its input, for a convolution
    of the pixel at the kernel's centre (a 1x1 convolution of the same stride), whose rank is at most `rank`. It is one matrix of zeros if
    that is no restriction, else a product whose first factor (outputs, rank) is zero; the second is drawn as PyTorch draws weights.
    """
    layers = [part for part in module.modules() if type(part) in _ADAPTED]
    for layer in layers:
        weight = layer.get_parameter("weight")
        outputs, inputs = len(weight), weight.shape[1] * getattr(layer, "groups", 1)
        pixel = (1,) * (weight.dim() - 2)
        if rank >= min(inputs, outputs):
            layer.adapter = nn.Parameter(weight.new_zeros(outputs, inputs, *pixel))
        else:
            layer.adapter_down = nn.Parameter(weight.new_empty(rank, inputs, *pixel))
            layer.adapter_up = nn.Parameter(weight.new_zeros(outputs, rank, *pixel))
            nn.init.kaiming_uniform_(layer.adapter_down, a=math.sqrt(5))
        layer.__class__ = _ADAPTED[type(layer)]  # so that weights, hooks and names stay, wherever the model holds the layer
    return len(layers)


def _matrices(layer: nn.Module) -> list[Tensor]:
    """Those of a layer's adapter, in the order in which they are applied."""
    return [getattr(layer, name) for name in NAMES if hasattr(layer, name)]


class _Linear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        beside = input
        for matrix in _matrices(self):
            beside = F.linear(beside, matrix)
        return super().forward(input) + beside


class _Conv2d(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        out = super().forward(input)
        beside = self._centres(input, out)
        for position, matrix in enumerate(_matrices(self)):
            beside = F.conv2d(beside, matrix, stride=self.stride if position == 0 else 1)
        return out + beside

    def _centres(self, input: Tensor, out: Tensor) -> Tensor:
        """The input, cropped or padded so that a 1x1 convolution of this stride meets the pixels at the centres of kernels."""
        margins: list[int] = []
        for axis in (-1, -2):  # F.pad begins with the last
            reach = self.dilation[axis] * (self.kernel_size[axis] // 2)
            before = self._reversed_padding_repeated_twice[2 * (-1 - axis)] - reach
            margins += [before, (out.shape[axis] - 1) * self.stride[axis] + 1 - input.shape[axis] - before]
        return F.pad(input, margins) if any(margins) else input


_ADAPTED: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: _Linear, nn.Conv2d: _Conv2d}
for _own, _theirs in ((_Linear, nn.Linear), (_Conv2d, nn.Conv2d)):
    _own.__name__ = _theirs.__name__  # by which users name the layers that are to be personal
