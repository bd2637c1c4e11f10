"""Floating-point operations of passes through networks."""

from __future__ import annotations

from typing import Any

import torch


def counter() -> Any:
    """PyTorch's counter of operations, put right for grouped convolutions: `with counter() as counted:`, then
    `counted.get_total_flops()`."""
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
