"""What a sample costs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fl_hydra.data.dataset import DatasetInfo


def sample_flops(module: nn.Module, info: DatasetInfo, *, backward: bool = True) -> int:
    """Floating-point operations, two for each multiply-add, of one sample's forward and backward pass, of products and convolutions."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        output = module(example(info)).sum()
        if backward:
            output.backward()
    return int(counter.get_total_flops())


def sample_bytes(module: nn.Module, info: DatasetInfo) -> int:
    """Bytes that one sample's forward pass keeps for its backward pass."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        module(example(info))
    return sum(kept.values())


def example(info: DatasetInfo, samples: int = 1) -> Tensor:
    """A batch of samples of zeros."""
    return torch.zeros(samples, *info.shape, dtype=torch.int64 if info.textual else torch.float32)
