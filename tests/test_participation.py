"""Which clients take part: the distributions and rules of the papers, on cases small enough to be worked out."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from fl_hydra.participation.base import Participation, Round, gumbel_top
from fl_hydra.participation.schemes import Everyone, Skewed, Uniform, log_dirichlet
from fl_hydra.runs.identity import run_folder
from tests.support.make import experiment

ONES = np.ones(20, np.int64)


def draw(scheme: Participation, m: int, seed: int = 0, round: int = 0, sizes: np.ndarray = ONES, gamma: float | None = None) -> list[int]:
    ids = scheme.cohort(Round(sizes, m, seed, round, gamma)).ids
    assert ids.dtype == np.int64
    return [int(client) for client in ids]


def counts(scheme: Participation, m: int, rounds: int, sizes: np.ndarray = ONES, gamma: float | None = None) -> np.ndarray:
    taken = np.zeros(len(sizes))
    for round in range(rounds):
        taken[draw(scheme, m, 0, round, sizes, gamma)] += 1
    return taken


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


def inclusion(p: np.ndarray, m: int) -> np.ndarray:
    """How likely each client is among m successive draws without replacement, by enumeration."""
    chances = np.zeros(len(p))
    for order in itertools.permutations(range(len(p)), m):
        left, chance = 1.0, 1.0
        for client in order:
            chance *= p[client] / left
            left -= p[client]
        chances[list(order)] += chance
    return chances


@pytest.mark.parametrize("m", [1, 2, 4])
@pytest.mark.parametrize("gamma", [0.3, 1.0, 10.0])
def test_skewed_cohorts_are_successive_draws_by_the_probabilities_of_the_run(gamma: float, m: int) -> None:
    rounds = 4000
    p = np.exp(log_dirichlet(gamma, 5, 0))
    assert p.sum() == pytest.approx(1)
    expected = inclusion(p, m)
    assert expected.sum() == pytest.approx(m)
    taken = counts(Skewed(), m, rounds, np.ones(5, np.int64), gamma) / rounds
    assert np.abs(taken - expected).max() < 5 * np.sqrt(0.25 / rounds)


def test_skewed_probabilities_are_a_symmetric_dirichlet() -> None:
    """Mean 1/K; variance (1/K)(1 - 1/K) / (K gamma + 1)."""
    K, gamma, seeds = 4, 0.5, 4000
    p = np.exp([log_dirichlet(gamma, K, seed) for seed in range(seeds)])
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
    p = np.exp(log_dirichlet(0.1, 20, 0))
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
