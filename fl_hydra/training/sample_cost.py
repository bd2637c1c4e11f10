"""The cost of a sample."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fl_hydra.data.dataset import DatasetInfo


def sample_flops(module: nn.Module, info: DatasetInfo, *, backward: bool = True) -> int:
    """Floating-point operations, two for each multiply-add, in the products and convolutions of one sample's passes."""
    with _counter() as counter:
        output = module(example(info)).sum()
        if backward:
            output.backward()
    return int(counter.get_total_flops())


def product_flops(module: nn.Module, info: DatasetInfo) -> int:
    """The same for one sample's Hessian-vector product, reverse over reverse."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    with _counter() as counter:
        gradients = torch.autograd.grad(module(example(info)).square().sum(), parameters, create_graph=True)
        torch.autograd.grad(torch.stack([gradient.sum() for gradient in gradients]).sum(), parameters, allow_unused=True)
    return int(counter.get_total_flops())


def _counter() -> Any:
    """PyTorch's counter of operations, put right for grouped convolutions."""
    from torch.utils import flop_counter

    formula: Any = flop_counter.conv_backward_flop  # of tensors; its annotations are those of shapes

    def backward(*arguments: Any, **keywords: Any) -> int:
        # The gradient of the weight is counted as if every output saw all inputs, and not only those of its group: of a depthwise
        # convolution of 256 channels 256 times too much.
        *given, groups, (of_inputs, of_weight, _) = arguments
        inputs = formula(*given, groups, (of_inputs, False, False), **keywords)
        return int(inputs + formula(*given, groups, (False, of_weight, False), **keywords) // groups)

    backward._get_raw = True  # type: ignore[attr-defined]
    return flop_counter.FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution_backward: backward})


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
