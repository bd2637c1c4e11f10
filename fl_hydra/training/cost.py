"""What a sample costs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fl_hydra.data.dataset import Card


def sample_flops(module: nn.Module, card: Card, *, backward: bool = True) -> int:
    """Floating-point operations, two for each multiply-add, of one sample's forward and backward pass, of products and convolutions."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        output = module(example(card)).sum()
        if backward:
            output.backward()
    return int(counter.get_total_flops())


def sample_bytes(module: nn.Module, card: Card) -> int:
    """Bytes that one sample's forward pass keeps for its backward pass."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        module(example(card))
    return sum(kept.values())


def example(card: Card, samples: int = 1) -> Tensor:
    """A batch of samples of zeros."""
    return torch.zeros(samples, *card.shape, dtype=torch.int64 if card.textual else torch.float32)
