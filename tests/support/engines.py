"""Settings that engines are compared in."""

from __future__ import annotations

from fl_hydra.algorithms.base import algorithms
from tests.support.make import inner, kind, suited

SETTINGS = {
    "centralized": ("rounds=2",),
    "localsgd": ("K=4", "J=4", "samples=700"),  # the last round is cut, with rows that stop at different steps
    "fedavg": ("K=10", "C=0.3", "J=3", "samples=380"),
}
PAIRS = [
    *((algorithm, inner(algorithm)) for algorithm in algorithms),
    *(("localsgd", optimizer) for optimizer in ("sgd", "adamw", "lars", "lamb")),
    ("fedavg", "sgd"),
]
"""Every algorithm with one optimizer, and every kind of optimizer with one algorithm."""
KINDS = [pair for pair in PAIRS if pair[0] in ("centralized", "localsgd", "fedavg", "fedsam", "a2cid2")]
"""Each way to ask an engine for gradients: of one row and of several, cut, twice a step and away from a row's place, in events."""


def arguments(algorithm: str, optimizer: str, *more: str) -> list[str]:
    return [f"algorithm={algorithm}", *suited(algorithm), *SETTINGS[kind(algorithm)], f"optimizer={optimizer}", "batch_size=16", *more]
