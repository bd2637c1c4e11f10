"""The real loop on quadratics whose trajectories can be worked out on paper.

Client k descends f_k(x) = a_k / 2 (x - b_k)^2. With a = (1, 3) and b = (0, 1) the mean of the two has its minimum at 3/4, and local
steps alone are drawn away from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fl_hydra.algorithms.base import Algorithm
from fl_hydra.arrays import Indices
from fl_hydra.seams.rows import GRADIENTS, PRODUCTS, Batch
from fl_hydra.training.planning import plan_round
from fl_hydra.training.trainer import Trainer
from tests.support.make import experiment

A, B = (1.0, 3.0), (0.0, 1.0)


class Quadratics:
    """A trainer whose clients descend quadratics, all parameters of a model alike.

    Args:
        overrides: of the configuration; K, J and the like. algorithm: in place of the configured one.
        a, b: of each client. sizes: samples of each, as they weigh. start: of every parameter.
    """

    def __init__(
        self,
        *overrides: str,
        a: Sequence[float] = A,
        b: Sequence[float] = B,
        sizes: Sequence[int] | int = 100,
        start: float = 0.0,
        **parts: Any,
    ) -> None:
        settings = (
            f"K={len(a)}",
            "optimizer=sgd",
            "optimizer.lr=0.1",
            "optimizer.weight_decay=0",
            "scheduler=constant",
            "batch_size=1",
            "samples=1000000",
        )
        small = ("precision=fp64", "model.filters=1", "model.hidden=1")
        self.run = Trainer(experiment(*settings, *small, *overrides, **parts), engine="stacked", device="cpu")
        self._a, self._b = (torch.tensor(values, dtype=torch.float64)[:, None] for values in (a, b))
        self._cohort = (-1, np.zeros(0, np.int64))
        self.run.group.engine.gradient = self._gradient  # type: ignore[method-assign]
        self.run.group.engine.product = self._product  # type: ignore[method-assign]
        self.run.state.model.fill_(start)
        self.run.sole_run.shard_sizes[:] = sizes

    def _gradient(self, parameters: Tensor, batch: Batch, objective: Any = None, *, metered: bool = True) -> Tensor:
        """Rows are the clients of the cohort, in order, which the plan of the round says."""
        batch.calls[:, GRADIENTS] += 1
        return self.gradient_at(parameters, self.ids)

    def _product(self, parameters: Tensor, vectors: Tensor, batch: Batch, objective: Any = None) -> Tensor:
        batch.calls[:, PRODUCTS] += 1
        product: Tensor = self._a[torch.from_numpy(self.ids)] * vectors
        return product

    def gradient_at(self, parameters: Tensor, ids: Indices) -> Tensor:
        """Gradients of some clients, int64 [n], at parameters [n, P]."""
        rows = torch.from_numpy(ids)
        answer: Tensor = self._a[rows] * (parameters - self._b[rows])
        return answer

    def rounds(self, count: int) -> list[float]:
        """The model after each of so many rounds."""
        found = []
        for _ in range(count):
            self.run.run_round()
            found.append(float(self.run.state.model[0, 0]))
            assert (self.run.state.model == self.run.state.model[0, 0]).all()
        return found

    @property
    def ids(self) -> Indices:
        """The cohort of the running round, int64 [rows]."""
        run = self.run.sole_run
        if self._cohort[0] != run.round:
            self._cohort = (run.round, plan_round(run).ids)
        return self._cohort[1]


def fixed_point_of(algorithm: Algorithm, J: int) -> float:
    """Where a method comes to on two clients with a = (1, 3), b = (0, 1), equal weights and rate 0.1."""
    made = Quadratics(f"algorithm={algorithm.name}", "C=1" if algorithm.federated else "seed=0", f"J={J}", algorithm=algorithm)
    return made.rounds(max(3, 300 // J))[-1]
