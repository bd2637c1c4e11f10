"""FedIR: losses weighted so that every client sees labels in the proportions of all samples."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fl_hydra.algorithms.fedir import weighted
from fl_hydra.errors import UserError
from fl_hydra.seams.rows import Batch, Outputs
from fl_hydra.training.planning import plan_round
from tests.support.losses import SMALL, assert_fedavg
from tests.support.make import experiment, trainer
from tests.support.small import normal


@pytest.mark.parametrize("engine", ["loop", "stacked"])
def test_with_equal_fractions_of_labels_it_is_fedavg(engine: str) -> None:
    run = assert_fedavg("algorithm=fedir", engine=engine, counts=np.outer([1, 3, 2, 2, 1, 5], np.arange(1, 11)))
    traffic = run.sole_run.traffic
    assert traffic.bytes_down - traffic.bytes_up == 3 * 3 * 8 * 10, "the fractions go down with the model"


def test_the_expected_loss_of_a_client_is_that_of_all_samples() -> None:
    """By enumeration: a loss for each label, which clients have in other proportions."""
    counts, own = np.array([[5, 3, 2], [1, 8, 11]]), normal(3, 3)
    p = counts.sum(0) / counts.sum()
    losses = weighted(Outputs(own, own), torch.arange(3), ratios=torch.ones(3, dtype=torch.float64)).numpy()
    for mine in counts:
        q = mine / mine.sum()
        found = weighted(Outputs(own, own), torch.arange(3), ratios=torch.from_numpy(p / q)).numpy()
        assert (q * found).sum() == pytest.approx((p * losses).sum(), rel=1e-14)


def test_a_private_uplink_would_not_hide_the_labels() -> None:
    with pytest.raises(UserError, match=r"uplink=dp: .* the server of algorithm=fedir learns more than that mean"):
        experiment("algorithm=fedir", "uplink=dp", "uplink.noise_multiplier=1", *SMALL)


def test_a_clients_ratios_are_its_own() -> None:
    command = ("K=10", "C=0.1", "J=1", "sharding=dirichlet", "sharding.alpha=1", "rounds=1", "batch_size=16", "precision=fp64")
    run = trainer("algorithm=fedir", *command)
    seen: dict[str, Tensor] = {}
    whole = run.group.engine.gradient

    def gradient(parameters: Tensor, batch: Batch, objective: Any = None, *, metered: bool = True) -> Tensor:
        seen.update(objective.by_row)
        return whole(parameters, batch, objective, metered=metered)

    run.group.engine.gradient = gradient  # type: ignore[method-assign]
    (client,), counts = plan_round(run.sole_run).ids.tolist(), run.sole_run.facts.label_counts
    assert counts is not None
    run.run_round()
    has = counts[client] > 0
    p, q = counts.sum(0) / counts.sum(), counts[client] / counts[client].sum()
    np.testing.assert_allclose(seen["ratios"][0].numpy()[has], p[has] / q[has], rtol=1e-14)
    assert has.sum() > 1 and not np.allclose(p[has], q[has])
