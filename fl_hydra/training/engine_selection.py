"""The choice of a run's engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from fl_hydra.seams.layout import Layout
from fl_hydra.training.engine_names import ENGINE_KINDS
from fl_hydra.training.engines import Engine
from fl_hydra.training.graphs import GraphLauncher, Launcher
from fl_hydra.training.loop_engine import LoopEngine
from fl_hydra.training.precision import Precision
from fl_hydra.training.stacked_engine import Im2colEngine, StackedEngine

GRADIENTS: dict[str, type[Engine]] = {"loop": LoopEngine, "stacked": StackedEngine, "im2col": Im2colEngine}

ENGINES: dict[str, tuple[type[Engine], type[Launcher]]] = {
    name: (GRADIENTS[kind.gradients], GraphLauncher if kind.recorded else Launcher) for name, kind in ENGINE_KINDS.items()
}
"""Engines by name: where gradients come from, and how steps are launched."""


LARGE_STEP = 5 * 10**6
"""Bytes of activations of a row's step above which a CPU spends its time in the convolutions, not in calling them: LeNet from batch
size 16, the small network never."""

FEW_ROWS = 4
"""The fewest rows of a run for which one call for all takes less time than one call for each."""


def candidates(device: torch.device, layout: Layout, step_bytes: int, precision: Precision, rows: int) -> list[str]:
    """The candidates for `engine=auto`; more than one only if nothing but a measurement can decide.

    If calls cost more than arithmetic, rows are stacked: on a GPU, and for small steps on a CPU. On a CPU a large stacked
    convolution takes 1.5 to 2.5 times as long as one row after the other, and in fp16 a hundred times; a stack of one row takes 2.5
    times as long as the row by itself. On a GPU it depends on the card and on cuDNN whether grouped convolutions, matrix products or
    parallel branches of plain convolutions are fastest.

    Args:
        step_bytes: memory that the forward pass of one row's batch keeps for its backward pass. rows: of a run in a round.
    """
    convolutional = any(len(shape) == 4 for shape in layout.shapes)
    if device.type == "cpu":
        if layout.recurrent or rows < FEW_ROWS:  # an LSTM is one long call of oneDNN for each row; stacks of them are copied together
            return ["loop"]
        slow_when_grouped = step_bytes >= LARGE_STEP or precision.compute == torch.float16
        return ["loop" if convolutional and slow_when_grouped else "stacked"]
    return ["graph", "graph-im2col", "graph-loop"] if convolutional else ["graph"]


_fastest: dict[str, str] = {}
"""The fastest engines measured in this process, by what their speed depends on."""


def fastest(names: Sequence[str], rounds: Callable[[str], Callable[[], None]], shape: str, notify: Callable[[str], None]) -> str:
    """The fastest of some engines on a GPU, from a few rounds of each; measured once for each shape in a process.

    Args:
        names: of the engines.
        rounds: returns a function that trains a round with an engine.
        shape: what the speed depends on.
        notify: is told which engine cannot be used here.

    Raises:
        RuntimeError: none can be used.
    """
    if shape not in _fastest:
        seconds = {}
        for name in names:
            try:
                seconds[name] = _seconds(rounds(name))
            except RuntimeError as error:
                notify(f"engine={name} cannot be used here: {' '.join(str(error).split())[:200]}")
        if not seconds:
            raise RuntimeError(f"none of the engines {', '.join(names)} can be used here; choose engine=stacked or engine=loop")
        _fastest[shape] = min(seconds, key=lambda name: seconds[name])
    return _fastest[shape]


def _seconds(run_round: Callable[[], None]) -> float:
    """Median seconds of a round after warming up: the first runs eagerly, the second is recorded."""
    times = []
    for _ in range(6):
        _synchronize()
        began = time.perf_counter()
        run_round()
        _synchronize()
        times.append(time.perf_counter() - began)
    return sorted(times[3:])[1]


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
