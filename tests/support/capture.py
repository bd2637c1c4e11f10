"""A guard under which a step may do only what a CUDA graph can record."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fl_hydra.training.graphs import GraphLauncher
from fl_hydra.training.trainer import Trainer

REFUSED = {
    "aten::_local_scalar_dense": "reads a value back to the host",
    "aten::item": "reads a value back to the host",
    "aten::is_nonzero": "reads a value back to the host",
    "aten::nonzero": "has a data-dependent shape",
    "aten::masked_select": "has a data-dependent shape",
    "aten::unique_dim": "has a data-dependent shape",
    "aten::_unique2": "has a data-dependent shape",
    "aten::bincount": "has a data-dependent shape",
}


class Capturable(TorchDispatchMode):
    """Refuses what cannot stand in a CUDA graph: read-backs, data-dependent shapes, boolean-mask indexing, copies between devices."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = function._schema.name
        if name in REFUSED:
            raise AssertionError(f"{name} {REFUSED[name]}")
        if name in ("aten::index", "aten::index_put", "aten::index_put_"):
            assert all(index is None or index.dtype != torch.bool for index in args[1]), f"{name} indexes by a boolean mask"
        if name in ("aten::_to_copy", "aten::copy_", "aten::to"):
            device = kwargs.get("device")
            assert device is None or torch.device(device) == args[0].device, f"{name} copies between devices"
        return function(*args, **kwargs)


def under_guard(run: Trainer) -> None:
    """A whole round under the guard: cohort, gathering and augmenting, local steps, averaging."""
    with Capturable():
        run.run_round()


class Recorder:
    """Stands in for CUDA graphs: recording runs the code without its effects, and a replay runs what was recorded once more.

    Args:
        run: whose steps are recorded from now on.
    """

    def __init__(self, run: Trainer) -> None:
        self._run = run
        self.replays: list[int] = []
        """How often each graph was replayed."""
        run.group.launcher = GraphLauncher(self._record)

    def _record(self, work: Callable[[], object]) -> Callable[[], None]:
        buffers = self._run.group.buffers
        memory = [buffers.meter, *buffers.kept.values()]
        for lane in buffers.lanes:
            memory += [lane.parameters, *lane.slots.values(), *([] if lane.starts is None else [lane.starts])]
        memory += [] if buffers.statistics is None else [buffers.statistics]
        before = [tensor.clone() for tensor in memory]
        work()
        for tensor, value in zip(memory, before, strict=True):
            tensor.copy_(value)
        position = len(self.replays)
        self.replays.append(0)

        def replay() -> None:
            self.replays[position] += 1
            work()

        return replay
