"""Fixed points of methods on two heterogeneous quadratics."""

from __future__ import annotations

import pytest

from fl_hydra.algorithms.base import Algorithm
from fl_hydra.algorithms.fedavg import FedAvg
from fl_hydra.algorithms.localsgd import LocalSGD
from tests.support.quadratics import fixed_point_of


@pytest.mark.parametrize("algorithm", [FedAvg(), LocalSGD()], ids=lambda algorithm: algorithm.name)
@pytest.mark.parametrize(("J", "fixed_point"), [(1, 0.75), (2, 0.728571), (8, 0.623296), (400, 0.5)])
def test_fixed_point_of_heterogeneous_quadratics(algorithm: Algorithm, J: int, fixed_point: float) -> None:
    """x* = sum (1 - r_k^J) b_k / sum (1 - r_k^J) with r_k = 1 - lr a_k: the bias of local steps, which no averaging removes."""
    assert fixed_point_of(algorithm, J) == pytest.approx(fixed_point, abs=1e-6)
