"""The cost of a sample."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fl_hydra.data.dataset import DatasetInfo
from fl_hydra.seams.operations import counter


def sample_flops(module: nn.Module, info: DatasetInfo, *, backward: bool = True) -> int:
    """Floating-point operations, two for each multiply-add, in the products and convolutions of one sample's passes."""
    with counter() as counted:
        output = module(example(info)).sum()
        if backward:
            output.backward()
    return int(counted.get_total_flops())


def product_flops(module: nn.Module, info: DatasetInfo) -> int:
    """The same for one sample's Hessian-vector product, reverse over reverse."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    with counter() as counted:
        gradients = torch.autograd.grad(module(example(info)).square().sum(), parameters, create_graph=True)
        torch.autograd.grad(torch.stack([gradient.sum() for gradient in gradients]).sum(), parameters, allow_unused=True)
    return int(counted.get_total_flops())


def sample_bytes(module: nn.Module, info: DatasetInfo, samples: int = 1) -> int:
    """Bytes that one sample's forward pass keeps for its backward pass, measured with a pass of `samples` samples."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        module(example(info, samples))
    return -(-sum(kept.values()) // samples)


def example(info: DatasetInfo, samples: int = 1) -> Tensor:
    """A batch of samples of zeros."""
    return torch.zeros(samples, *info.shape, dtype=torch.int64 if info.textual else torch.float32)
