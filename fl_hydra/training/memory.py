"""How much is trained at once: a function of the run and the kind of device, unless memory is short, which is reported."""

from __future__ import annotations

from collections.abc import Callable

import torch

from fl_hydra.devices import free_memory, total_memory

CPU_BLOCK_BYTES = 2**32
"""Memory that a block's rows may take on a CPU. A constant, as a run's last bits would otherwise depend on the memory that is free."""

GPU_BLOCK_PART = 0.6
"""The fraction of a GPU's memory, free or not, that they may take there."""

Notify = Callable[[str], None]


def rows_that_fit(device: torch.device, row_bytes: int, rows: int, notify: Notify) -> int:
    """How many rows, of `row_bytes` each, a block may have in a run of `rows` rows."""
    usual = max(1, _block_bytes(device) // row_bytes)
    return _no_more_than_free(device, "rows of a run", usual, row_bytes, min(usual, rows), 0.75, notify)


def samples_that_fit(device: torch.device, sample_bytes: int, batch_size: int, notify: Notify) -> int:
    """Of how many samples of a batch, of `sample_bytes` each, one row's gradient is computed at once."""
    usual = usual_samples(device, sample_bytes)
    return _no_more_than_free(device, "samples of a batch", usual, sample_bytes, min(usual, batch_size), 0.5, notify)


def usual_samples(device: torch.device, sample_bytes: int) -> int:
    """Of how many samples one row's gradient is computed at once where memory is not short, whatever the batch size."""
    return max(1, _block_bytes(device) // (2 * sample_bytes))


def _block_bytes(device: torch.device) -> int:
    return CPU_BLOCK_BYTES if device.type == "cpu" else int(GPU_BLOCK_PART * total_memory(device))


def _no_more_than_free(device: torch.device, what: str, usual: int, each: int, needed: int, part: float, notify: Notify) -> int:
    """`usual`, unless `needed` items of `each` bytes do not fit into the fraction `part` of the free memory; then what fits."""
    free = free_memory(device)
    fit = usual if free is None else max(1, int(part * free / each))
    if fit >= needed:
        return usual
    notify(f"memory is short: {fit} {what} at once in place of {needed}; with more memory the last digits would differ")
    return fit


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: on a GPU, in the CPU's allocator, or in oneDNN, recognised by its messages."""
    said = ("can't allocate memory", "could not create a memory object", "could not create a primitive")
    return isinstance(error, torch.OutOfMemoryError) or (any(text in str(error) for text in said) and "descriptor" not in str(error))
