"""Devices: how numbers get there, how much memory is free, and the C allocator's settings that suit training on a CPU."""

from __future__ import annotations

import ctypes
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEEP = 2**30


@lru_cache(maxsize=1)
def keep_freed_memory() -> None:
    """Tell glibc to keep freed blocks of up to a gigabyte for the next allocation; elsewhere, do nothing.

    By default it hands every block above 32 MB back to the system at once, and a stacked step, which allocates the same
    large gradients again and again, would pay for fresh, zeroed pages each time: a third of a small round.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(M_MMAP_THRESHOLD, KEEP)
    mallopt(M_TRIM_THRESHOLD, KEEP)


def to_device(array: np.ndarray[Any, np.dtype[Any]], device: torch.device) -> torch.Tensor:
    """An array as a tensor on a device; a GPU is not waited for."""
    import torch

    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be allocated on a device; None where the system does not say."""
    if device.type == "cuda":
        import torch

        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    try:
        line = Path("/proc/meminfo").read_text().split("MemAvailable:")[1]
    except (OSError, IndexError):
        return None
    return int(line.split()[0]) * 1024


def computes_in(device: torch.device, dtype: torch.dtype | None) -> bool:
    """Whether a device has instructions for a dtype of lower precision, or it is not known that it lacks them. None: no such dtype."""
    import torch

    names = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
    if device.type != "cpu" or dtype not in names:
        return True
    try:
        return bool(getattr(torch.ops.mkldnn, names[dtype])())
    except (AttributeError, RuntimeError):
        return True


def total_memory(device: torch.device) -> int:
    """Bytes of a GPU's memory, taken or not."""
    import torch

    return int(torch.cuda.get_device_properties(device).total_memory)
