"""Which engine a run takes."""

from __future__ import annotations

import torch

from fl_hydra.training.engines import Engine, Im2colEngine, LoopEngine, StackedEngine
from fl_hydra.training.graphs import GraphLauncher, Launcher
from fl_hydra.training.layout import Layout
from fl_hydra.training.precision import Precision

ENGINES: dict[str, tuple[type[Engine], type[Launcher]]] = {
    "loop": (LoopEngine, Launcher),
    "stacked": (StackedEngine, Launcher),
    "im2col": (Im2colEngine, Launcher),
    "graph": (StackedEngine, GraphLauncher),
    "graph-im2col": (Im2colEngine, GraphLauncher),
    "graph-loop": (LoopEngine, GraphLauncher),
}
"""Engines by name: where gradients come from, and how steps are launched."""


LARGE_STEP = 5 * 10**6
"""Bytes of activations of a row's step from which a CPU spends its time in the convolutions themselves, and not in calling them:
LeNet from batch 16 on, the small network never."""


def candidates(device: torch.device, layout: Layout, step_bytes: int, precision: Precision) -> list[str]:
    """What `engine=auto` has to choose from; more than one only where nothing but a measurement can tell.

    Where calls are dearer than arithmetic, rows are stacked: on a GPU, and for small steps on a CPU. On a CPU a large stacked
    convolution takes 1.5 to 2.5 times as long as one row after the other, and in fp16 a hundred times. On a GPU it depends on
    the card and its cuDNN whether grouped convolutions, matrix products or parallel branches of plain ones win.

    Args:
        step_bytes: what the forward pass of one row's batch keeps for its backward pass.
    """
    convolutional = any(len(shape) == 4 for shape in layout.shapes)
    if device.type == "cpu":
        slow_when_grouped = step_bytes >= LARGE_STEP or precision.compute == torch.float16
        return ["loop" if convolutional and slow_when_grouped else "stacked"]
    return ["graph", "graph-im2col", "graph-loop"] if convolutional else ["graph"]
