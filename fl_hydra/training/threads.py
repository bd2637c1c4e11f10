"""Threads that each run PyTorch's kernels on one core."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import torch


def single_threaded_pool(threads: int) -> ThreadPoolExecutor:
    """A pool whose threads run each kernel on one core; the caller's own number of threads does not change.

    `torch.set_num_threads` sets the calling thread's number and the default that other threads adopt at their first kernel.
    So each thread of the pool must adopt 1 before the default is restored; otherwise timing would decide whether its kernels
    are divided, and with it the last bits of the results.
    """
    cores = torch.get_num_threads()
    started = Barrier(threads + 1)

    def initialise() -> None:
        torch.set_num_threads(1)
        torch.get_num_threads()  # adopts the default
        started.wait()

    pool = ThreadPoolExecutor(threads, initializer=initialise)
    for _ in range(threads):
        pool.submit(int)  # starts a new thread each time, as none is idle before the barrier
    started.wait()
    torch.set_num_threads(cores)
    return pool
