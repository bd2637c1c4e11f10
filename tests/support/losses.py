"""What methods that change the loss of clients are compared with: FedAvg, and clients' label counts of a test's own."""

from __future__ import annotations

import numpy as np
import torch

from fl_hydra.training.trainer import Trainer
from tests.support.make import trainer

SMALL = ("K=6", "C=0.5", "J=3", "precision=fp64", "samples=400", "batch_size=16")
"""Three rounds, of which the last is cut."""


def assert_fedavg(*method: str, engine: str = "loop", counts: np.ndarray[tuple[int, int], np.dtype[np.int64]] | None = None) -> Trainer:
    """Check that a method trains as FedAvg does, up to rounding, and return it. counts: int64 [K, classes], in place of clients' own."""
    one, other = trainer("algorithm=fedavg", *SMALL, engine=engine), trainer(*method, *SMALL, engine=engine)
    if counts is not None:
        other.sole_run.facts.__dict__["label_counts"] = counts
    while not one.finished:
        one.run_round()
        other.run_round()
    torch.testing.assert_close(other.state.model, one.state.model, rtol=1e-12, atol=1e-12)
    plain, changed = one.evaluate()[0], other.evaluate()[0]
    assert {name: changed[name] for name in ("samples", "train/acc", "val/acc", "flops", "seconds")} == {
        name: plain[name] for name in ("samples", "train/acc", "val/acc", "flops", "seconds")
    }
    return other
