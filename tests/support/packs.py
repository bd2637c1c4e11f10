"""Members of a pack, trained together or alone."""

from __future__ import annotations

from typing import Any

import torch

from fl_hydra.training.trainer import Trainer
from tests.support.make import inner, kind, own_numbers, suited

SHAPES = {
    "centralized": ("rounds=3", "batch_size=64"),
    "localsgd": ("K=4", "J=4", "batch_size=16"),
    "fedavg": ("K=12", "C=0.25", "J=3", "batch_size=16"),
}
"""What the members of a pack have in common."""

DIFFERENT = {
    "centralized": [("seed=1",), ("seed=2", "optimizer.lr=0.03", "scheduler=cosine"), ("optimizer.momentum=0.5", "rounds=2")],
    "localsgd": [("samples=1000",), ("seed=1", "samples=1000", "optimizer.lr=0.03"), ("samples=700", "optimizer.weight_decay=0")],
    "fedavg": [
        ("samples=250",),
        ("samples=250", "seed=3", "sharding=classes", "N_c=2", "optimizer.lr=0.03"),
        ("samples=400", "participation.dropout=0.3", "scheduler=linear"),
    ],
}
"""In what they differ; budgets too, so that their last rounds are cut at different times."""


def members(algorithm: str, *more: str) -> list[tuple[str, ...]]:
    return [
        (
            f"algorithm={algorithm}",
            *suited(algorithm),
            f"optimizer={inner(algorithm)}",
            *SHAPES[kind(algorithm)],
            *own_numbers(algorithm, position),
            *more,
            *different,
        )
        for position, different in enumerate(DIFFERENT[kind(algorithm)])
    ]


def train(run: Trainer) -> list[dict[str, Any]]:
    """Train to the end, dropping members as they finish; the last row of each, in the order in which they ended."""
    rows: list[dict[str, Any]] = []
    while run.runs:
        run.run_round()
        done = [position for position, packed_run in enumerate(run.runs) if packed_run.finished]
        for position in done:
            rows.append({**run.evaluate([position])[0], "weights": run.weights(position), "seed": run.runs[position].experiment.seed})
        left = [position for position in range(len(run.runs)) if position not in done]
        if not left:
            break
        if done:
            run.retain_runs(left)
    return rows


def assert_same(packed: dict[str, Any], alone: dict[str, Any]) -> None:
    """Bit by bit."""
    assert torch.equal(packed.pop("weights"), alone.pop("weights"))
    assert packed == alone
