"""How the steps of a round are launched: call by call, or recorded once as a CUDA graph and replayed.

A graph removes the cost of launching (some fifty kernels a local step), but always reads and writes the same memory. So inputs
that change from round to round are named tensors, copied into fixed ones before a replay, and results are left in buffers that
every round shares.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from fl_hydra.training.memory import out_of_memory

Tensors = dict[str, Tensor]
T = TypeVar("T")
Replay = Callable[[], None]


class Launcher:
    """Runs every piece of work eagerly."""

    replays = False

    def run(self, key: Hashable, work: Callable[[Tensors], T], tensors: Tensors) -> T:
        """Do `work(tensors)`.

        Args:
            key: equal for pieces of work that launch the same kernels on tensors of the same shapes; None: never replayed.
            work: reads its `tensors`, and otherwise only fixed memory.
            tensors: inputs that change from call to call.

        Returns:
            the work's result; for a replay, its result when it was recorded.
        """
        return work(tensors)

    def side_by_side(self, pieces: Sequence[Callable[[], None]]) -> None:
        """Do pieces of work that are independent of each other."""
        for piece in pieces:
            piece()

    def forget(self) -> None:
        """Drop all recordings: their buffers are gone."""


class GraphLauncher(Launcher):
    """Runs work eagerly the first time, which also warms libraries up, records it the second time, and replays it from then on.

    Args:
        record: records a piece of work without doing it, and returns a function that replays it; by default a CUDA graph.
    """

    replays = True

    def __init__(self, record: Callable[[Callable[[], object]], Replay] | None = None) -> None:
        self._record = record or _CudaRecorder()
        self._seen: set[Hashable] = set()
        self._too_large: set[Hashable] = set()
        self._recorded: dict[Hashable, tuple[Replay, Tensors, Any]] = {}
        self._streams: list[torch.cuda.Stream] = []

    def run(self, key: Hashable, work: Callable[[Tensors], T], tensors: Tensors) -> T:
        if key is None:
            return work(tensors)
        if key not in self._seen or key in self._too_large:
            self._seen.add(key)
            return work(tensors)
        if key not in self._recorded:
            fixed = {name: tensor.clone() for name, tensor in tensors.items()}
            returned: list[T] = []
            try:
                replay = self._record(lambda: returned.append(work(fixed)))
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                self._too_large.add(key)  # a graph needs its own memory; without one, the work can be done in parts
                return work(tensors)
            self._recorded[key] = (replay, fixed, returned[0])
        replay, fixed, result = self._recorded[key]
        for name, tensor in tensors.items():
            fixed[name].copy_(tensor, non_blocking=True)
        replay()
        return result  # type: ignore[no-any-return]

    def side_by_side(self, pieces: Sequence[Callable[[], None]]) -> None:
        """On a GPU each piece runs on its own stream, and so becomes a branch of the graph being recorded."""
        if not torch.cuda.is_available() or len(pieces) == 1:
            super().side_by_side(pieces)
            return
        while len(self._streams) < len(pieces):
            self._streams.append(torch.cuda.Stream())  # type: ignore[no-untyped-call]
        main = torch.cuda.current_stream()
        for stream, piece in zip(self._streams, pieces, strict=False):
            stream.wait_stream(main)
            with torch.cuda.stream(stream):
                piece()
        for stream in self._streams[: len(pieces)]:
            main.wait_stream(stream)

    def forget(self) -> None:
        self._seen.clear()
        self._too_large.clear()
        self._recorded.clear()
        if isinstance(self._record, _CudaRecorder):
            self._record = _CudaRecorder()  # a memory pool is freed with its graphs


class _CudaRecorder:
    """Records CUDA graphs that share one memory pool, as they are replayed one after the other and leave nothing in it."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, work: Callable[[], object]) -> Replay:
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, pool=self._pool):
            work()
        return graph.replay
