"""A transformer of image patches, in plain products, so that `torch.func` transforms it and its operations are counted."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Attention(nn.Module):
    """Self-attention with several heads (Vaswani et al. 2017), [n, tokens, width] -> [n, tokens, width]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, inputs: Tensor) -> Tensor:
        samples, tokens, width = inputs.shape
        split = self.qkv(inputs).view(samples, tokens, 3, self.heads, width // self.heads)
        queries, keys, values = split.permute(2, 0, 3, 1, 4).unbind(0)  # each [n, heads, tokens, width / heads]
        weights = (queries * (width // self.heads) ** -0.5 @ keys.mT).softmax(-1)
        attended: Tensor = self.out((weights @ values).transpose(1, 2).reshape(samples, tokens, width))
        return attended


class Block(nn.Module):
    """x + attention(norm(x)), then the same with two linear layers and GELU in place of attention."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, inputs: Tensor) -> Tensor:
        inputs = inputs + self.attention(self.norm1(inputs))
        out: Tensor = inputs + self.mlp(self.norm2(inputs))
        return out


class VisionTransformer(nn.Module):
    """Patches as tokens with learned positions, blocks, their mean, and a linear layer.

    Linear layers are drawn as the authors' are: uniform after Glorot and Bengio, with biases of 0; positions with deviation 0.02.

    Args:
        channels: of images. patches: of an image. patch: pixels of a patch's side.
    """

    def __init__(self, channels: int, patches: int, classes: int, patch: int, width: int, depth: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, width, patch, patch)
        self.positions = nn.Parameter(0.02 * torch.randn(1, patches, width))
        self.blocks = nn.Sequential(*(Block(width, heads, hidden) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)
        for part in self.modules():
            if isinstance(part, nn.Linear):
                nn.init.xavier_uniform_(part.weight)
                nn.init.zeros_(part.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        tokens = self.patches(inputs).flatten(2).mT + self.positions
        logits: Tensor = self.head(self.norm(self.blocks(tokens)).mean(1))
        return logits
