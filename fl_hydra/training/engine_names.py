"""Engines by name; without torch, so that the configuration can check them before anything is trained."""

from __future__ import annotations

from typing import Literal, NamedTuple


class EngineKind(NamedTuple):
    """gradients: row by row in a loop, of stacked rows in one call, or the latter with convolutions as matrix products. recorded: whether
    steps are launched as a recorded CUDA graph."""

    gradients: Literal["loop", "stacked", "im2col"]
    recorded: bool = False


ENGINE_KINDS = {
    "loop": EngineKind("loop"),
    "stacked": EngineKind("stacked"),
    "im2col": EngineKind("im2col"),
    "graph": EngineKind("stacked", recorded=True),
    "graph-im2col": EngineKind("im2col", recorded=True),
    "graph-loop": EngineKind("loop", recorded=True),
}
