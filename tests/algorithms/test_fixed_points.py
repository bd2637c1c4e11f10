"""Fixed points of methods on two heterogeneous quadratics."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fl_hydra.algorithms.base import Algorithm
from fl_hydra.algorithms.fedavg import FedAvg
from fl_hydra.algorithms.localsgd import LocalSGD
from fl_hydra.optim.base import Layers
from fl_hydra.optim.outer import Outer, OuterSGD
from fl_hydra.optim.sgdm import SGDM
from fl_hydra.training.fabric import Fabric, Traffic
from fl_hydra.training.rows import Batch, Clients, Rows, Server


def server(rule: Outer, rate: float = 0.1) -> Server:
    """The outer optimizer of one run of one parameter."""
    one = torch.ones(1, 1, dtype=torch.float64)
    return Server(rule, {name: one * value for name, value in rule.hyper.items()}, one * rule.lr, one * rate, Layers((1,), (True,)))


def quadratic_rounds(algorithm: Algorithm, J: int, rounds: int, x: float = 0.3) -> float:
    """Run a method on the two clients f_k(x) = a_k / 2 (x - b_k)^2 with a = (1, 3), b = (0, 1) and rate 0.1."""
    a, b = torch.tensor([[1.0], [3.0]], dtype=torch.float64), torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    weights = torch.full((2,), 0.5, dtype=torch.float64)
    clients = Clients(np.arange(2), weights, {}, Fabric(True, 2, 2, Traffic()), server(OuterSGD()))
    state = algorithm.initial(torch.tensor([[x]], dtype=torch.float64), 2)
    lr = torch.full((2, J), 0.1, dtype=torch.float64)
    optimizer = SGDM(momentum=0.0)
    hyper = {name: torch.full((2, 1), value, dtype=torch.float64) for name, value in optimizer.hyper.items()}
    batch = Batch(torch.empty(2, 0), torch.empty(2, 0), None, torch.zeros(2, 2), np.zeros(2, np.int64), np.zeros(2, np.int64))
    for _ in range(rounds):
        starts = algorithm.start(state, clients)
        rows = Rows(starts.clone(), starts, {}, hyper, lr, optimizer, Layers((1,), (True,)))
        for j in range(J):
            algorithm.step(rows, lambda parameters, _: a * (parameters - b), [batch] * algorithm.batches_per_step, j)
        algorithm.update(state, clients, starts, rows.parameters)
    return float(state.model)


@pytest.mark.parametrize("algorithm", [FedAvg(), LocalSGD()], ids=lambda algorithm: algorithm.name)
@pytest.mark.parametrize(("J", "fixed_point"), [(1, 0.75), (2, 0.728571), (8, 0.623296), (400, 0.5)])
def test_fixed_point_of_heterogeneous_quadratics(algorithm: Algorithm, J: int, fixed_point: float) -> None:
    """x* = sum (1 - r_k^J) b_k / sum (1 - r_k^J) with r_k = 1 - lr a_k: the bias of local steps, which no averaging removes."""
    assert quadratic_rounds(algorithm, J, rounds=400) == pytest.approx(fixed_point, abs=1e-6)
