"""The C allocator's settings that suit training on a CPU."""

from __future__ import annotations

import ctypes
from functools import lru_cache

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEEP = 2**30


@lru_cache(maxsize=1)
def keep_freed_memory() -> None:
    """Tell glibc to keep freed blocks of up to a gigabyte for the next allocation; elsewhere, do nothing.

    By default it hands every large block back to the system at once. A training step allocates the same activations and
    gradients again and again, and would pay for fresh, zeroed pages each time: a third of the time of a small step.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(M_MMAP_THRESHOLD, KEEP)
    mallopt(M_TRIM_THRESHOLD, KEEP)
