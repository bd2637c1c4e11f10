"""Networks of depthwise convolutions, and of layers that mix channels."""

from __future__ import annotations

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

from fl_hydra.models.layers.normalisation import normalisation
from fl_hydra.models.layers.residual import Mean


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of each pixel of [n, channels, height, width]."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


class ConvNeXtBlock(nn.Module):
    """x + linear(gelu(linear(norm(depthwise(x))))), where the linear layers mix the channels of each pixel."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = nn.LayerNorm(width)
        self.expand, self.project = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, inputs: Tensor) -> Tensor:
        out = self.norm(self.depthwise(inputs).movedim(1, -1))
        out = self.project(F.gelu(self.expand(out)))
        added: Tensor = inputs + out.movedim(-1, 1)
        return added


def convnext(channels: int, classes: int, patch: int, width: int, depth: int, stages: int, kernel: int) -> nn.Module:
    """Patches, stages of `depth` blocks with halving and doubling between them, the mean, LayerNorm and a linear layer."""
    parts: list[tuple[str, nn.Module]] = [("patches", nn.Conv2d(channels, width, patch, patch)), ("norm", ChannelNorm(width))]
    for stage in range(stages):
        if stage:
            halve = nn.Sequential(ChannelNorm(width), nn.Conv2d(width, 2 * width, 2, 2))
            parts.append((f"halve{stage}", halve))
            width *= 2
        parts += [(f"stage{stage}_{block}", ConvNeXtBlock(width, kernel)) for block in range(depth)]
    module = nn.Sequential(OrderedDict([*parts, ("mean", Mean()), ("last_norm", nn.LayerNorm(width)), ("head", nn.Linear(width, classes))]))
    for part in module.modules():  # as the authors do
        if isinstance(part, nn.Conv2d | nn.Linear):
            nn.init.trunc_normal_(part.weight, std=0.02)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    return module


class Residual(nn.Sequential):
    """x plus what its layers make of x."""

    def forward(self, input: Tensor) -> Tensor:
        added: Tensor = input + super().forward(input)  # type: ignore[no-untyped-call]
        return added


def convmixer(channels: int, classes: int, patch: int, width: int, depth: int, kernel: int, norm: str, groups: int) -> nn.Module:
    """Patches, `depth` blocks of a depthwise and a pointwise convolution, each with GELU and a normalisation, the mean, a linear layer."""

    def activated(convolution: nn.Conv2d) -> list[nn.Module]:
        return [convolution, nn.GELU(), normalisation(norm, width, groups)]

    blocks = [
        nn.Sequential(
            Residual(*activated(nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width))), *activated(nn.Conv2d(width, width, 1))
        )
        for _ in range(depth)
    ]
    return nn.Sequential(
        OrderedDict(
            patches=nn.Sequential(*activated(nn.Conv2d(channels, width, patch, patch))),
            blocks=nn.Sequential(*blocks),
            mean=Mean(),
            head=nn.Linear(width, classes),
        )
    )
