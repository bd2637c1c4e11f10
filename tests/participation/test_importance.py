"""Importance sampling, and its weights in training."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from fl_hydra.algorithms.base import State
from fl_hydra.algorithms.fedavg import FedAvg
from fl_hydra.errors import UserError
from fl_hydra.participation.by_loss import PowerOfChoice
from fl_hydra.participation.importance import Importance, inclusion, systematic
from fl_hydra.resolving import resolve
from fl_hydra.training.planning import plan_round
from fl_hydra.training.rows import Clients
from fl_hydra.training.trainer import Trainer
from tests.support.cohorts import SMALL, made, simulate, single_ends
from tests.support.make import config, experiment


@pytest.mark.parametrize("m", [1, 3, 5])
def test_inclusion_probabilities_are_proportional_and_capped(m: int) -> None:
    p = np.array([0.6, 0.2, 0.1, 0.05, 0.03, 0.02])
    chances = inclusion(p, m)
    assert chances.sum() == pytest.approx(m)
    assert chances.max() <= 1
    free = chances < 1
    assert np.ptp(chances[free] / p[free]) < 1e-12
    assert inclusion(p, 3) == pytest.approx([1, 1, 0.5, 0.25, 0.15, 0.1])


@pytest.mark.parametrize("m", [1, 2, 4])
def test_importance_weights_are_unbiased_whatever_the_norms(m: int) -> None:
    """By enumeration over the design: of all starting points, those between two borders give one cohort."""
    rng = np.random.default_rng(m)
    n = 6
    shares, updates = rng.dirichlet(np.ones(n)), rng.normal(size=(n, 3))
    chances = Importance(mixing=0.1).chances(rng.exponential(size=n) ** 3, m)
    ends = np.cumsum(chances)
    borders = np.unique(np.concatenate([[0.0, 1.0], ends % 1]))
    expected, likely = np.zeros(3), 0.0
    for low, high in itertools.pairwise(borders):
        taken = systematic(chances, (low + high) / 2)
        assert len(set(taken.tolist())) == m
        expected += (high - low) * ((shares[taken] / chances[taken])[:, None] * updates[taken]).sum(0)
        likely += high - low
    assert likely == pytest.approx(1)
    assert expected == pytest.approx(shares @ updates, abs=1e-12)


def test_importance_prefers_large_updates_and_mixes() -> None:
    values = np.array([8.0, 1.0, 1.0, np.nan])
    known = 10 / 3
    p = 0.75 * np.array([8, 1, 1, known]) / (10 + known) + 0.25 / 4
    assert Importance(mixing=0.25).chances(values, 1) == pytest.approx(p)
    assert Importance(mixing=1.0).chances(values, 2) == pytest.approx(np.full(4, 0.5))
    for hopeless in (np.zeros(4), np.full(4, np.nan), np.full(4, np.inf)):
        assert Importance().chances(hopeless, 2) == pytest.approx(np.full(4, 0.5))
    (first,) = simulate(Importance(), 5, 1)
    assert first.weights == pytest.approx(np.full(5, 1 / 5)), "with nothing known it is uniform sampling"


def test_systematic_sampling_survives_rounding() -> None:
    for seed in range(200):
        rng = np.random.default_rng(seed)
        n = int(rng.integers(2, 40))
        m = int(rng.integers(1, n + 1))
        chances = inclusion(rng.dirichlet(np.full(n, 0.2)) + 1e-9, m)
        for start in (0.0, float(np.nextafter(1, 0)), *rng.random(3)):
            taken = systematic(chances, start)
            assert len(set(taken.tolist())) == m == len(taken)
            assert 0 <= taken.min() <= taken.max() < n


@pytest.mark.parametrize("engine", ["loop", "stacked"])
def test_importance_weights_act_on_the_update(engine: str) -> None:
    """w + sum of (w_i / pi_i) (w_i_end - w), row by row and all at once; at first pi = m / K over clients with samples."""
    run = made("participation=importance", engine=engine)
    start, sizes = run.state.model[0].clone(), run.member.shard_sizes
    run.run_round()
    ids = np.flatnonzero(~np.isnan(run.member.scheme_state["norm"]))
    assert len(ids) == 4
    ends = single_ends(run, ids.tolist())
    q = torch.from_numpy(sizes[ids] / sizes.sum() / (4 / 7))
    torch.testing.assert_close(run.state.model[0], start + q @ (ends - start), rtol=1e-12, atol=1e-12)
    assert run.member.scheme_state["norm"][ids] == pytest.approx((ends - start).norm(dim=1).numpy(), rel=1e-10)


def test_importance_sampling_stays_unbiased_when_clients_drop_out() -> None:
    """Weights are divided by how likely a client reports; over many rounds those of a cohort sum to 1."""
    e = experiment(*SMALL, "K=20", "C=0.2", "participation=importance", "participation.dropout=0.25")
    run = Trainer(e, engine="stacked")
    rests = []
    for run.member.round in range(3000):
        rests.append(plan_round(run.member).residual_weight)
    assert np.mean(rests) == pytest.approx(0, abs=5 * np.std(rests) / np.sqrt(len(rests)))
    assert np.std(rests) > 0.1


# What is refused


def test_methods_that_use_more_than_the_mean_refuse_weights_of_importance() -> None:
    @dataclass
    class More(FedAvg):
        needs_ends: ClassVar[bool] = True

        def update(self, state: State, clients: Clients, starts: Tensor, ends: Tensor) -> None:
            state.model.copy_(clients.mean(ends))

    made = config(*SMALL, "participation=importance")
    made.algorithm = More()
    with pytest.raises(UserError, match="uses more of a round"):
        resolve(made)
    made.participation = PowerOfChoice()
    resolve(made)
