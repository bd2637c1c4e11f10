"""Threads that each run PyTorch's kernels on one core."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import torch


def single_threaded_pool(threads: int) -> ThreadPoolExecutor:
    """A pool whose threads divide no kernel among further threads; the caller's own number of threads is left as it is.

    `torch.set_num_threads` sets the number of the calling thread and the default that other threads adopt at their first
    kernel. So each thread of the pool must have adopted 1 before the default is put back; otherwise it would depend on
    timing whether its kernels are divided, and with it the last bits of the results.
    """
    cores = torch.get_num_threads()
    started = Barrier(threads + 1)

    def initialise() -> None:
        torch.set_num_threads(1)
        torch.get_num_threads()  # adopts the default
        started.wait()

    pool = ThreadPoolExecutor(threads, initializer=initialise)
    for _ in range(threads):
        pool.submit(int)  # a thread is started for each, as none is idle before the barrier
    started.wait()
    torch.set_num_threads(cores)
    return pool
