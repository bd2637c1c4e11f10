"""FedCor: its likelihood, its choices, and when it asks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fl_hydra.participation.base import Round
from fl_hydra.participation.fedcor import FedCor, embedding, greedy
from fl_hydra.participation.schemes import Uniform
from tests.support.cohorts import ONES


def likelihood(changes: np.ndarray, places: np.ndarray, noise: float) -> float:
    covariance = places.T @ places + noise**2 * np.eye(changes.shape[1])
    inverse, (_, logdet) = np.linalg.inv(covariance), np.linalg.slogdet(covariance)
    return float(np.mean([-0.5 * (c @ inverse @ c + logdet) for c in changes]))


def test_the_embedding_has_the_largest_likelihood() -> None:
    rng = np.random.default_rng(0)
    changes = rng.normal(size=(30, 2)) @ rng.normal(size=(2, 6)) + 0.3 * rng.normal(size=(30, 6))
    for dimension in (1, 2, 4):
        places = embedding(changes, np.full(30, 1 / 30), dimension, 0.3)
        best = likelihood(changes, places, 0.3)
        for scale in (1e-3, 1e-2, 0.1, 1.0):
            for _ in range(20):
                assert likelihood(changes, places + scale * rng.normal(size=places.shape), 0.3) < best
    single = embedding(np.array([[3.0, 4.0]]), np.ones(1), 2, 1.0)
    # c c^T has the eigenvalue 25 with the eigenvector (3, 4) / 5: X = sqrt(24) (3, 4) / 5 up to its sign.
    assert single.T @ single == pytest.approx(24 / 25 * np.outer([3, 4], [3, 4]))


def test_fedcor_chooses_by_hand() -> None:
    """S = [[4, 2, 0], [2, 4, 0], [0, 0, 1]], equal shares: falls 6/2, 6/2, 1/1 (over 3): client 0. Then S_11 = 4 - 1 = 3, and falls are
    sqrt 3 and 1: client 1. Halved after the first choice of 1, sqrt(3) / 2 < 1: client 2."""
    S = np.array([[4.0, 2, 0], [2, 4, 0], [0, 0, 1]])
    shares = np.full(3, 1 / 3)
    assert greedy(S, shares, np.ones(3), 3).tolist() == [0, 1, 2]
    assert greedy(S, shares, np.array([1, 0.5, 1]), 3).tolist() == [0, 2, 1]
    assert greedy(S, np.array([0.1, 0.1, 0.8]), np.ones(3), 2).tolist() == [2, 0]


def test_fedcor_asks_around_uniform_rounds_only_and_discounts() -> None:
    asked: list[int] = []
    rule = FedCor(warmup=2, interval=4, beta=0.5)
    memory: dict[str, Any] = {}
    chosen = []
    rng = np.random.default_rng(0)
    for round in range(12):
        losses = rng.random(20)

        def answer(ids: np.ndarray, samples: int | None, round: int = round, losses: np.ndarray = losses) -> Any:
            asked.append(round)
            assert len(ids) == 20
            assert samples is None
            return losses[ids]

        cohort = rule.cohort(Round(ONES, 5, 0, round, None, np.ones(20), memory, answer))
        memory = {**memory, **cohort.remember}
        chosen.append(cohort.ids.tolist())
        if round == 1:
            change = memory["changes"][0]
        if round == 2:
            assert memory["changes"][1].tolist() == change.tolist(), "changes grow old"
            assert memory["chosen"].sum() == 5
        if round == 5:
            assert memory["chosen"].sum() == 20
    assert asked == [0, 1, 2, 6, 7, 10, 11]
    assert memory["chosen"].sum() == 5, "a fit forgets who was chosen"
    assert chosen[0] == Uniform().cohort(Round(ONES, 5, 0, 0)).ids.tolist()
    assert chosen[2] != chosen[3], "discounted clients make room for others"


def test_fedcor_forgets_places_that_a_later_fit_has_not() -> None:
    """The last three changes are three dimensions; where one of them is not finite, two."""
    rule = FedCor(warmup=4, interval=2, history=3)
    losses = np.random.default_rng(0).random((8, 5))
    losses[7] = np.nan
    memory: dict[str, np.ndarray] = {}
    found = {}
    for number in range(8):
        asked = losses[number]
        cohort = rule.cohort(Round(ONES[:5], 2, 0, number, memory=memory, losses=lambda ids, samples, asked=asked: asked[ids]))  # type: ignore[misc]
        memory = {**memory, **cohort.remember}
        if "places" in cohort.remember:
            found[number] = memory["places"]
    assert {number: len(places) for number, places in found.items()} == {4: 3, 7: 2}
    assert all(np.isfinite(places).all() for places in found.values())


@pytest.mark.parametrize("fields", [{"dimension": 10**9, "history": 10**9}, {"noise": 1e50}, {"noise": 1e-50}])
def test_fedcor_at_its_bounds(fields: dict[str, float]) -> None:
    rule = FedCor(warmup=2, interval=2, **fields)  # type: ignore[arg-type]
    memory: dict[str, np.ndarray] = {}
    for number in range(7):
        losses = np.random.default_rng(number).random(5)
        cohort = rule.cohort(Round(ONES[:5], 2, 0, number, memory=memory, losses=lambda ids, samples, losses=losses: losses[ids]))  # type: ignore[misc]
        memory = {**memory, **cohort.remember}
        assert len(set(cohort.ids.tolist())) == 2
