"""How much is trained at once: functions of the run and the kind of device, unless memory is short, which is said."""

from __future__ import annotations

from collections.abc import Callable

import torch

from fl_hydra.devices import free_memory, total_memory

CPU_BLOCK_BYTES = 2**32
"""Memory that the rows of a block may take on a CPU. A constant, as what is free at a start would decide the last bits of a run."""

GPU_BLOCK_PART = 0.6
"""The part of a GPU's memory, free or not, that they may take there."""

Notify = Callable[[str], None]


def rows_that_fit(device: torch.device, row_bytes: int, rows: int, notify: Notify) -> int:
    """How many rows, of `row_bytes` each, make a block of a run that has so many of them."""
    usual = max(1, _block_bytes(device) // row_bytes)
    return _no_more_than_free(device, "rows of a run", usual, row_bytes, min(usual, rows), 0.75, notify)


def samples_that_fit(device: torch.device, sample_bytes: int, batch_size: int, notify: Notify) -> int:
    """Of how many samples of a batch, of `sample_bytes` each, one row's gradient is taken at once."""
    usual = max(1, _block_bytes(device) // (2 * sample_bytes))
    return _no_more_than_free(device, "samples of a batch", usual, sample_bytes, min(usual, batch_size), 0.5, notify)


def _block_bytes(device: torch.device) -> int:
    return CPU_BLOCK_BYTES if device.type == "cpu" else int(GPU_BLOCK_PART * total_memory(device))


def _no_more_than_free(device: torch.device, what: str, usual: int, each: int, needed: int, part: float, notify: Notify) -> int:
    """`usual`, unless `needed` of it, of `each` bytes, are more than fit into a part of the free memory."""
    free = free_memory(device)
    fit = usual if free is None else max(1, int(part * free / each))
    if fit >= needed:
        return usual
    notify(f"memory is short: {fit} {what} at once in place of {needed}; with more memory the last digits would differ")
    return fit


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory has run out: on a GPU, in the allocator of the CPU, or in oneDNN, whose words these are."""
    said = ("can't allocate memory", "could not create a memory object", "could not create a primitive")
    return isinstance(error, torch.OutOfMemoryError) or (any(text in str(error) for text in said) and "descriptor" not in str(error))
