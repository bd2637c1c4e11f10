"""Which clients take part: all, uniform and skewed draws, and what every scheme keeps to."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from fl_hydra.participation.base import gumbel_top, participations
from fl_hydra.participation.schemes import Everyone, Skewed, Uniform, log_probabilities
from fl_hydra.runs.identity import run_folder
from tests.support.cohorts import ONES, assert_uniform, counts, draw, scheme, simulate, successive
from tests.support.make import experiment


def test_uniform_cohorts_are_a_function_of_seed_and_round_and_fair() -> None:
    sizes = ONES.copy()
    sizes[3] = 0
    taken = counts(Uniform(), 5, 3000, sizes)
    assert taken[3] == 0, "a client without images is never drawn"
    expected = 3000 * 5 / 19
    assert np.abs(taken[sizes > 0] - expected).max() < 5 * np.sqrt(expected)
    assert draw(Uniform(), 5, 0, 7) == draw(Uniform(), 5, 0, 7)
    assert draw(Uniform(), 5, 1, 7) != draw(Uniform(), 5, 0, 7)
    assert draw(Everyone(), 19, sizes=sizes) == [k for k in range(20) if k != 3]


@pytest.mark.parametrize("m", [1, 2, 4])
@pytest.mark.parametrize("gamma", [0.3, 1.0, 10.0])
def test_skewed_cohorts_are_successive_draws_by_the_probabilities_of_the_run(gamma: float, m: int) -> None:
    rounds = 4000
    p = np.exp(log_probabilities(gamma, 5, 0))
    assert p.sum() == pytest.approx(1)
    expected = successive(p, m)
    assert expected.sum() == pytest.approx(m)
    taken = counts(Skewed(), m, rounds, np.ones(5, np.int64), gamma) / rounds
    assert np.abs(taken - expected).max() < 5 * np.sqrt(0.25 / rounds)


def test_skewed_probabilities_are_a_symmetric_dirichlet() -> None:
    """Mean 1/K; variance (1/K)(1 - 1/K) / (K gamma + 1)."""
    K, gamma, seeds = 4, 0.5, 4000
    p = np.exp([log_probabilities(gamma, K, seed) for seed in range(seeds)])
    variance = (1 / K) * (1 - 1 / K) / (K * gamma + 1)
    assert np.abs(p.mean(0) - 1 / K).max() < 5 * np.sqrt(variance / seeds)
    assert p.var(0) == pytest.approx(np.full(K, variance), rel=0.1)


@pytest.mark.parametrize("gamma", [1e6, 1e300, float("inf")])
def test_skewed_participation_with_large_gamma_is_uniform(gamma: float) -> None:
    expected = 3000 * 5 / 20
    assert np.abs(counts(Skewed(), 5, 3000, gamma=gamma) - expected).max() < 5 * np.sqrt(expected)


@pytest.mark.parametrize("gamma", [1e-3, 1e-12, 1e-300, 5e-324])
def test_tiny_gamma_has_a_favourite_and_never_too_few_clients(gamma: float) -> None:
    sizes = ONES.copy()
    sizes[::4] = 0
    for seed, m in itertools.product(range(5), (1, 6, 15)):
        cohort = draw(Skewed(), m, seed, 3, sizes, gamma)
        assert len(set(cohort)) == m
        assert sizes[cohort].all()
    if 1e-300 < gamma < 1e-3:
        assert len({tuple(draw(Skewed(), 1, 0, round, gamma=gamma)) for round in range(50)}) == 1
        assert len({tuple(draw(Skewed(), 5, 0, round, gamma=gamma)) for round in range(50)}) > 1, "those without weight are drawn at random"


def test_skewed_probabilities_are_drawn_once_for_a_run() -> None:
    p = np.exp(log_probabilities(0.1, 20, 0))
    taken = counts(Skewed(), 1, 400, gamma=0.1)
    assert taken.argmax() == p.argmax()
    assert draw(Skewed(), 5, 0, 7, gamma=1.0) == draw(Skewed(), 5, 0, 7, gamma=1.0)


def test_gumbel_keys_ignore_the_scale_of_the_weights() -> None:
    logs = np.log([0.5, 0.3, 0.2])
    one, other = (gumbel_top(logs + shift, 3, np.random.default_rng(0)).tolist() for shift in (0.0, -1e3))
    assert one == other


def test_gamma_is_in_the_name_where_it_is_read() -> None:
    common = ("algorithm=fedavg", "K=20", "C=0.2")
    skewed, plain = experiment(*common, "participation=skewed", "gamma=0.5"), experiment(*common, "gamma=0.5")
    assert "-gamma0.5-" in run_folder(skewed, skewed.data).name
    assert "gamma" not in run_folder(plain, plain.data).name
    assert run_folder(plain, plain.data) == run_folder(experiment(*common), plain.data)


@pytest.mark.parametrize("name", [name for name in participations if name != "all"])
def test_every_cohort_has_m_distinct_clients_with_data(name: str) -> None:
    for K, m, seed in [(5, 1, 0), (5, 4, 1), (20, 3, 2), (20, 11, 3), (50, 10, 4)]:
        sizes = np.random.default_rng(seed).integers(1, 9, K)
        sizes[np.random.default_rng(seed).permutation(K)[: (K - m) // 2]] = 0
        for loss in (None, lambda _, K=K: np.zeros(K), lambda _, K=K: np.full(K, np.nan), lambda r, K=K: np.arange(K) * 10.0**r):
            for cohort in simulate(scheme(name), m, 12, sizes=sizes, seed=seed, loss=loss):
                ids = cohort.ids.tolist()
                assert ids == sorted(set(ids))
                assert len(ids) == m
                assert sizes[ids].all()
                assert cohort.weights is None or (len(cohort.weights) == m and np.isfinite(cohort.weights).all())


@pytest.mark.parametrize("name", ["power_of_choice", "afl", "oort", "importance", "by_size", "diurnal", "cyclic", "fedcor"])
def test_clients_that_are_alike_take_part_equally_often(name: str) -> None:
    assert_uniform(simulate(scheme(name), 4, 1500, loss=lambda _: np.ones(20)), 20)
