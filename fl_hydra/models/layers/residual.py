"""Residual blocks of two 3x3 convolutions, and the network of them."""

from __future__ import annotations

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

from fl_hydra.models.layers.normalisation import normalisation


class Block(nn.Module):
    """relu(shortcut(x) + norm(conv(relu(norm(conv(x)))))).

    The shortcut to a smaller output has every other pixel, and zeros in the new channels.

    Args:
        inputs, outputs: channels. stride: of the first convolution.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, norm: str, groups: int) -> None:
        super().__init__()
        self.stride, self.new = stride, outputs - inputs
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=norm == "none")
        self.norm1 = normalisation(norm, outputs, groups)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=norm == "none")
        self.norm2 = normalisation(norm, outputs, groups)

    def forward(self, inputs: Tensor) -> Tensor:
        out = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(inputs)))))
        shortcut = inputs[:, :, :: self.stride, :: self.stride]
        if self.new:
            shortcut = F.pad(shortcut, (0, 0, 0, 0, self.new // 2, self.new - self.new // 2))
        return F.relu(out + shortcut)


class Mean(nn.Module):
    """The mean over the image, [n, channels, height, width] -> [n, channels]."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.mean((2, 3))


def residual_network(channels: int, classes: int, blocks: int, width: int, norm: str, groups: int) -> nn.Module:
    """Three stages of `blocks` blocks, of `width` channels and of twice and four times as many.

    Weights of convolutions are drawn as in He et al. (ICCV 2015): normal, of variance 2 / inputs.
    """
    parts: list[tuple[str, nn.Module]] = [
        ("conv", nn.Conv2d(channels, width, 3, 1, 1, bias=norm == "none")),
        ("norm", normalisation(norm, width, groups)),
        ("relu", nn.ReLU()),
    ]
    inputs = width
    for stage in range(3):
        for block in range(blocks):
            outputs = width * 2**stage
            parts.append((f"stage{stage}_{block}", Block(inputs, outputs, 2 if stage and not block else 1, norm, groups)))
            inputs = outputs
    module = nn.Sequential(OrderedDict([*parts, ("mean", Mean()), ("head", nn.Linear(inputs, classes))]))
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight)
    return module
