"""Which clients take part: the distributions and rules of the papers, on cases small enough to be worked out."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from fl_hydra.algorithms.base import State
from fl_hydra.algorithms.fedavg import FedAvg
from fl_hydra.errors import UserError
from fl_hydra.participation.availability import Cyclic, Diurnal
from fl_hydra.participation.base import Cohort, Participation, Round, gumbel_top, participations
from fl_hydra.participation.by_loss import ActiveFL, Oort, PowerOfChoice
from fl_hydra.participation.fedcor import FedCor, embedding, greedy
from fl_hydra.participation.importance import Importance, inclusion, systematic
from fl_hydra.participation.schemes import Everyone, Skewed, Uniform, log_probabilities
from fl_hydra.resolving import resolve
from fl_hydra.runs.identity import run_folder
from fl_hydra.runs.packing import shape
from fl_hydra.seams.clients import Clients, Facts
from fl_hydra.seams.rows import Batch, Gradient, Rows
from fl_hydra.sharding.base import Sharding, Shards
from fl_hydra.training.planning import plan_round
from fl_hydra.training.trainer import Trainer
from tests.support.make import config, experiment, trainer
from tests.test_engines import under_guard

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


def successive(p: np.ndarray, m: int) -> np.ndarray:
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


def _answer(losses: np.ndarray, ids: np.ndarray, samples: int | None) -> Any:
    return losses[ids]


def simulate(
    scheme: Participation,
    m: int,
    rounds: int,
    *,
    sizes: np.ndarray = ONES,
    seed: int = 0,
    loss: Callable[[int], np.ndarray] | None = None,
    gamma: float | None = 0.5,
    seconds: np.ndarray | None = None,
) -> list[Cohort]:
    """The cohorts of some rounds, of clients whose losses, and all else that is measured, are `loss(round)`, float64 [K]."""
    K = len(sizes)
    of_round = loss or (lambda round: np.random.default_rng([seed, round]).random(K) + 0.1)
    memory: dict[str, Any] = {}
    cohorts = []
    for round in range(rounds):
        losses = of_round(round)
        took = np.ones(K) if seconds is None else seconds
        seen = Round(sizes, m, seed, round, gamma, took, memory, partial(_answer, losses))
        cohort = scheme.cohort(seen)
        again = scheme.cohort(seen)
        assert cohort.ids.tolist() == again.ids.tolist(), "a function of (seed, round, memory)"
        memory = {**memory, **cohort.remember}
        stats = dict.fromkeys(scheme.measures, losses[cohort.ids])
        memory = {**memory, **scheme.observe(replace(seen, memory=memory), cohort.ids, stats)}
        assert all(values.dtype == np.float64 and values.shape[-1] == K for values in memory.values())
        cohorts.append(cohort)
    return cohorts


def scheme(name: str, **fields: Any) -> Participation:
    fields = {"warmup": 2, "interval": 3, **fields} if name == "fedcor" else fields
    return participations[name](**fields)


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


def assert_uniform(cohorts: Sequence[Cohort], K: int) -> None:
    taken = np.bincount(np.concatenate([cohort.ids for cohort in cohorts]), minlength=K)
    assert np.abs(taken - taken.sum() / K).max() < 5 * np.sqrt(taken.sum() / K)


@pytest.mark.parametrize("name", ["power_of_choice", "afl", "oort", "importance", "diurnal", "cyclic", "fedcor"])
def test_clients_that_are_alike_take_part_equally_often(name: str) -> None:
    assert_uniform(simulate(scheme(name), 4, 1500, loss=lambda _: np.ones(20)), 20)


# Availability


def test_cyclic_blocks_take_turns_in_an_order_of_the_run() -> None:
    cohorts = [cohort.ids.tolist() for cohort in simulate(Cyclic(turn=2), 5, 16)]
    assert cohorts[0::2] == cohorts[1::2]
    assert sorted(itertools.chain(*cohorts[:8:2])) == list(range(20)), "in each pass everyone takes part once"
    assert cohorts[:8] == cohorts[8:]
    assert cohorts[:8] != [cohort.ids.tolist() for cohort in simulate(Cyclic(turn=2), 5, 8, seed=1)]
    blocks = [set(cohort.ids.tolist()) for cohort in simulate(Cyclic(blocks=2), 5, 400)]
    even, odd = set.union(*blocks[::2]), set.union(*blocks[1::2])
    assert (len(even), len(odd), even & odd) == (10, 10, set())


def test_diurnal_clients_are_there_by_their_hour() -> None:
    K, period = 400, 8
    sizes = np.ones(K, np.int64)
    cohorts = simulate(Diurnal(period=period), 40, 240, sizes=sizes)
    taken = np.zeros((period, K))
    for round, cohort in enumerate(cohorts):
        taken[round % period, cohort.ids] += 1
    share = taken / 30
    # Half of all are there on average: a client takes part with probability p_k(r) m / (K / 2), on average 1/10; over a day that is a wave
    # with half the swing of its mean.
    wave = 2 * np.abs(np.fft.fft(share, axis=0)[1]) / period
    assert share.mean() == pytest.approx(0.1)
    assert wave.mean() == pytest.approx(0.1, rel=0.25)
    phase = np.angle(np.fft.fft(share, axis=0)[1])
    assert np.abs(np.exp(1j * phase).mean()) < 0.2, "phases are uniform"


# Importance sampling


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


# Power-of-choice


def test_power_of_choice_with_d_equal_m_draws_by_data_size() -> None:
    sizes = np.array([1, 2, 3, 4, 10])
    expected = successive(sizes / sizes.sum(), 2)
    cohorts = simulate(PowerOfChoice(d=2), 2, 4000, sizes=sizes)
    taken = np.bincount(np.concatenate([cohort.ids for cohort in cohorts])) / 4000
    assert np.abs(taken - expected).max() < 5 * np.sqrt(0.25 / 4000)


def test_power_of_choice_with_all_candidates_takes_the_largest_losses() -> None:
    for round, cohort in enumerate(simulate(PowerOfChoice(d=20), 5, 20)):
        losses = np.random.default_rng([0, round]).random(20)
        assert set(cohort.ids.tolist()) == set(np.argsort(-losses)[:5].tolist())
        assert cohort.weights == pytest.approx(np.full(5, 0.2))


# Active federated learning


def test_afl_sets_the_smallest_values_aside_and_draws_by_a_softmax() -> None:
    """K=4, sizes 1, 4, 9, 16 and losses 1: values 1, 2, 3, 4. Half is set aside; p = softmax(alpha2 * (3, 4))."""
    sizes = np.array([1, 4, 9, 16])
    alpha2 = 0.7
    cohorts = simulate(ActiveFL(alpha1=0.5, alpha2=alpha2, alpha3=0.0), 1, 4000, sizes=sizes, loss=lambda _: np.ones(4))
    taken = np.bincount(np.concatenate([cohort.ids for cohort in cohorts]), minlength=4) / 4000
    p = np.exp(alpha2 * np.array([3, 4]))
    assert taken[:2].tolist() == [0, 0]
    assert np.abs(taken[2:] - p / p.sum()).max() < 5 * np.sqrt(0.25 / 4000)


def test_afl_draws_a_part_of_the_cohort_uniformly_from_the_rest() -> None:
    """m=4, alpha3=0.5: two of the two that are left by alpha1=0.8, and two uniformly from the other eight."""
    cohorts = simulate(ActiveFL(alpha1=0.8, alpha3=0.5), 4, 2000, sizes=ONES[:10], loss=lambda _: np.arange(10.0))
    assert all({8, 9} <= set(cohort.ids.tolist()) for cohort in cohorts)
    others = np.bincount(np.concatenate([cohort.ids for cohort in cohorts]), minlength=10)[:8] / 2000
    assert np.abs(others - 2 / 8).max() < 5 * np.sqrt(0.25 / 2000)


def test_afl_values_are_those_of_the_last_time_a_client_took_part() -> None:
    seen = Round(ONES, 2, 0, 0, losses=lambda ids, samples: np.arange(20.0)[ids])
    cohort = ActiveFL().cohort(seen)
    assert cohort.remember["loss"].tolist() == list(range(20))
    learnt = ActiveFL().observe(replace(seen, memory=cohort.remember), np.array([3, 5]), {"loss": np.array([7.0, 8.0])})
    assert learnt["loss"].tolist() == [0, 1, 2, 7, 4, 8, *range(6, 20)]
    assert not ActiveFL().cohort(replace(seen, round=1, memory=learnt)).remember, "nobody is asked again"


# Oort


def test_oort_utilities_by_hand() -> None:
    """Round 10; U = 100, 50, 10; last seen in rounds 9, 1, 5; durations 1, 1, 2 with T = 1 and alpha = 2."""
    U, last, seconds = np.array([100.0, 50.0, 10.0]), np.array([9.0, 1.0, 5.0]), np.array([1.0, 1.0, 2.0])
    log = 0.1 * np.log(10)
    listing = [100 + np.sqrt(log / 9), 50 + np.sqrt(log), (10 + np.sqrt(log / 5)) / 4]
    assert Oort(normalise=False, clip=1.0).utilities(U, last, seconds, 1.0, 10) == pytest.approx(listing)
    low, span = 9.99, 90.01
    scaled = [1 + np.sqrt(log / 9), (50 - low) / span + np.sqrt(log), ((10 - low) / span + np.sqrt(log / 5)) / 4]
    assert Oort(clip=1.0).utilities(U, last, seconds, 1.0, 10) == pytest.approx(scaled)
    scale = [(50 - low) / span + np.sqrt(log / 9), (50 - low) / span + np.sqrt(log), ((10 - low) / span + np.sqrt(log / 5)) / 4]
    assert Oort(clip=0.5).utilities(U, last, seconds, 1.0, 10) == pytest.approx(scale), "an outlier stretches the scale"
    clipped = Oort(normalise=False, clip=0.5).utilities(U, last, seconds, 1.0, 10)
    assert clipped[0] == pytest.approx(50 + np.sqrt(log / 9)), "clipped at the value that half of them are below"
    assert Oort(normalise=False, alpha=0.0, clip=1.0).utilities(U, last, seconds, 1.0, 10)[2] == pytest.approx(10 + np.sqrt(log / 5))


def test_oort_explores_less_and_less() -> None:
    """epsilon = 0.9 * 0.98^r, at least 0.2: of 10 places 9 at first, 5 where it is 0.4908 (r = 30), 2 at last."""
    assert [Oort().exploring(10, round) for round in (0, 30, 74, 75, 1000)] == [9, 5, 3, 2, 2]


def test_oort_exploits_what_is_above_the_cut_off_in_proportion_to_utility() -> None:
    """Nobody is unknown; utilities 4, 3.9, 3, 1. For one place the cut-off is 0.95 * 4 = 3.8; for three, 0.95 * 3 = 2.85."""
    memory = {"utility": np.array([4.0, 3.9, 3.0, 1.0]), "last": np.ones(4)}
    rule = Oort(normalise=False, clip=1.0)

    def taken(m: int) -> np.ndarray:
        cohorts = [rule.cohort(Round(ONES[:4], m, seed, 0, None, np.ones(4), memory)).ids for seed in range(4000)]
        return np.bincount(np.concatenate(cohorts), minlength=4) / 4000

    assert np.abs(taken(1) - [4 / 7.9, 3.9 / 7.9, 0, 0]).max() < 5 * np.sqrt(0.25 / 4000)
    assert taken(3).tolist() == [1, 1, 1, 0]


def test_oort_explores_by_speed_and_remembers_what_it_saw() -> None:
    seconds = np.array([1.0, 2.0, 4.0])
    first = Counter(int(Oort().cohort(Round(ONES[:3], 1, seed, 0, None, seconds)).ids[0]) for seed in range(4000))
    assert [first[k] / 4000 for k in range(3)] == pytest.approx([4 / 7, 2 / 7, 1 / 7], abs=0.04)
    seen = Round(np.array([5, 7, 9]), 1, 0, 4, None, seconds)
    learnt = Oort().observe(seen, np.array([1]), {"root_square": np.array([2.0])})
    assert learnt["utility"][1] == 14, "|B| sqrt(mean loss^2)"
    assert learnt["last"][1] == 5, "rounds are counted from 1"
    assert np.isnan(learnt["utility"][[0, 2]]).all()


# FedCor


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


# In training

SMALL = ("algorithm=fedavg", "K=8", "C=0.5", "J=2", "batch_size=4", "precision=fp64", "model.filters=1", "model.hidden=2", "rounds=12")


@dataclass
class Uneven(Sharding):
    """Clients of 8, 16, 24, ... samples, the fourth without any."""

    name: str = "iid"

    def shards(self, sample_owners: Any, K: int, N_c: int | None, seed: int) -> Shards:
        sizes = 8 * np.arange(1, K + 1)
        sizes[3] = 0
        order = np.random.default_rng(seed).permutation(sample_owners.total)[: sizes.sum()]
        return Shards.from_sizes(order, sizes)


def made(*overrides: str, engine: str = "stacked", **parts: Any) -> Trainer:
    return trainer(*SMALL, *overrides, engine=engine, **{"sharding": Uneven(), **parts})


def module_losses(run: Trainer, model: Tensor, ids: Sequence[int]) -> list[np.ndarray]:
    """The losses of all samples of some clients, through the module itself."""
    module = run.group.architecture.build().double()
    found = []
    for client in ids:
        own = torch.from_numpy(run.sole_run.shards[client])
        with torch.no_grad():
            logits = functional_call(module, run.group.layout.views(model), (run.split.train.plain(own),))
            found.append(F.cross_entropy(logits, run.split.train.targets[own], reduction="none").numpy())
    return found


def test_losses_are_those_of_the_present_model_on_own_samples() -> None:
    run = made("dataset.flip=true", "dataset.crop=2")
    run.run_round()
    ids = np.array([1, 4, 7])
    expected = [losses.mean() for losses in module_losses(run, run.state.model[0], ids.tolist())]
    assert run.loss_queries.answer(run.sole_run, run.state.model[0], ids, None) == pytest.approx(expected, rel=1e-12)
    some = run.sole_run.loss_samples(ids, 5)
    assert [len(own) for own in some] == [5, 5, 5]
    assert all(set(own.tolist()) <= set(run.sole_run.shards[k].tolist()) for k, own in zip(ids.tolist(), some, strict=True))
    assert [own.tolist() for own in some] == [own.tolist() for own in run.sole_run.loss_samples(ids, 5)]
    run.run_round()
    assert [own.tolist() for own in some] != [own.tolist() for own in run.sole_run.loss_samples(ids, 5)]


def single_ends(run: Trainer, ids: Sequence[int]) -> Tensor:
    """Where each of some clients ends the first round, [n, P]: each trained alone."""
    ends = []
    for k in ids:
        alone = made(engine="loop")
        alone.sole_run.experiment.participation.cohort = lambda _, k=k: Cohort(np.array([k]))  # type: ignore
        alone.run_round()
        ends.append(alone.state.model[0])
    return torch.stack(ends)


@pytest.mark.parametrize("engine", ["loop", "stacked"])
def test_importance_weights_act_on_the_update(engine: str) -> None:
    """w + sum of (w_i / pi_i) (w_i_end - w), row by row and all at once; at first pi = m / K over clients with samples."""
    run = made("participation=importance", engine=engine)
    start, sizes = run.state.model[0].clone(), run.sole_run.shard_sizes
    run.run_round()
    ids = np.flatnonzero(~np.isnan(run.sole_run.scheme_state["norm"]))
    assert len(ids) == 4
    ends = single_ends(run, ids.tolist())
    q = torch.from_numpy(sizes[ids] / sizes.sum() / (4 / 7))
    torch.testing.assert_close(run.state.model[0], start + q @ (ends - start), rtol=1e-12, atol=1e-12)
    assert run.sole_run.scheme_state["norm"][ids] == pytest.approx((ends - start).norm(dim=1).numpy(), rel=1e-10)


@pytest.mark.parametrize("engine", ["loop", "stacked"])
def test_what_a_round_shows(engine: str) -> None:
    """With one step on whole shards, the losses are those of the first model on all samples."""
    for name in ("oort", "afl"):
        run = made(f"participation={name}", "J=1", "batch_size=8", "dataset.crop=0", engine=engine)
        packed_run = run.sole_run
        only = Cohort(np.array([0, 1]), remember={"loss": np.zeros(8)})
        packed_run.experiment.participation.cohort = lambda _, only=only: only  # type: ignore
        model = run.state.model[0].clone()
        run.run_round()
        (losses,) = module_losses(run, model, [0])
        if name == "oort":
            assert packed_run.scheme_state["utility"][0] == pytest.approx(8 * np.sqrt((losses**2).mean()), rel=1e-12)
            assert packed_run.scheme_state["last"][:2].tolist() == [1, 1]
        else:
            assert packed_run.scheme_state["loss"][0] == pytest.approx(losses.mean(), rel=1e-12)


def test_asking_for_losses_is_charged() -> None:
    """Six candidates for three places: six models down instead of three, and a forward pass over the candidates' samples."""
    plain, run = made("C=0.375"), made("C=0.375", "participation=power_of_choice", "participation.d=6")
    payload = run.group.layout.size * 8
    for each in (plain, run):
        each.run_round()
    assert plain.sole_run.traffic.bytes_down == 3 * payload
    assert run.sole_run.traffic.bytes_down == 6 * payload
    assert run.sole_run.traffic.bytes_up == plain.sole_run.traffic.bytes_up == 3 * payload
    assert run.sole_run.traffic.messages == plain.sole_run.traffic.messages + 3
    (row,), (other,) = run.evaluate(), plain.evaluate()
    assert other["flops"] == run.group.sample_flops * 3 * 2 * 4
    assert row["flops"] == other["flops"] + run.group.forward_flops * run.sole_run.evaluated
    assert run.group.sample_flops / 3 <= run.group.forward_flops < run.group.sample_flops / 1.9
    assert 8 * (1 + 2 + 3 + 5 + 6 + 7) <= run.sole_run.evaluated <= 8 * (2 + 3 + 5 + 6 + 7 + 8)
    few = made("participation=power_of_choice", "C=0.375", "participation.d=6", "participation.samples=10")
    few.run_round()
    assert few.sole_run.evaluated in (6 * 10, 5 * 10 + 8)
    assert few.sole_run.seconds > plain.sole_run.seconds


def test_fedcor_and_afl_ask_when_they_should() -> None:
    run = made("participation=fedcor", "participation.warmup=1", "participation.interval=3")
    payload, total = run.group.layout.size * 8, int(run.sole_run.shard_sizes.sum())
    evaluated, down = [], []
    for _ in range(6):
        run.run_round()
        evaluated.append(run.sole_run.evaluated // total)
        down.append(run.sole_run.traffic.bytes_down // payload)
    assert evaluated == [1, 2, 2, 2, 3, 4], "rounds 0 and 1, and 4 and 5"
    assert np.diff([0, *down]).tolist() == [7, 7, 4, 4, 7, 7], "seven clients have samples, and four take part"
    afl = made("participation=afl")
    for _ in range(3):
        afl.run_round()
    assert afl.sole_run.evaluated == total
    assert afl.sole_run.traffic.bytes_down == (7 + 4 + 4) * payload


SCHEMES = {
    "all": ["C=1"],
    "skewed": ["gamma=0.5"],
    "fedcor": ["participation.warmup=2", "participation.interval=2"],
    "oort": ["speeds=linear"],
}


def chosen(name: str) -> list[str]:
    return [f"participation={name}", *SCHEMES.get(name, [])]


@pytest.mark.parametrize("name", list(participations))
def test_a_run_goes_on_exactly(name: str) -> None:
    overrides = (*chosen(name), "participation.dropout=0.2")
    whole, first, second = (made(*overrides) for _ in range(3))
    for _ in range(9):
        whole.run_round()
    for _ in range(4):
        first.run_round()
    second.restore(first.checkpoint())
    for _ in range(5):
        second.run_round()
    assert torch.equal(whole.state.model, second.state.model)
    assert whole.evaluate()[0].keys() == second.evaluate()[0].keys()
    assert (whole.sole_run.traffic, whole.sole_run.evaluated, whole.sole_run.seconds) == (
        second.sole_run.traffic,
        second.sole_run.evaluated,
        second.sole_run.seconds,
    )


@pytest.mark.parametrize("name", list(participations))
def test_packed_runs_choose_as_they_do_alone(name: str) -> None:
    settings = [(*SMALL, *chosen(name), "participation.dropout=0.3", f"seed={seed}") for seed in (0, 1, 2)]
    assert len({shape(config(*s), resolve(config(*s))) for s in settings}) == 1
    for engine, rows in (("loop", None), ("stacked", 3)):
        together = Trainer(*(experiment(*s) for s in settings), engine=engine, rows_at_once=rows)
        for _ in range(4):
            together.run_round()
        for run, s in enumerate(settings):
            alone = Trainer(experiment(*s), engine=engine, rows_at_once=rows)
            for _ in range(4):
                alone.run_round()
            assert torch.equal(together.state.model[run], alone.state.model[0])
            assert together.runs[run].traffic == alone.sole_run.traffic
            assert together.runs[run].evaluated == alone.sole_run.evaluated


def test_schemes_that_measure_unlike_things_are_not_packed() -> None:
    shapes = {shape(config(*s), resolve(config(*s))) for s in ((*SMALL, *chosen(name)) for name in ("uniform", "skewed", "oort", "afl"))}
    assert len(shapes) == 3


@pytest.mark.parametrize("name", ["all", "uniform", "skewed", "cyclic", "diurnal"])
@pytest.mark.parametrize("engine", ["loop", "stacked"])
def test_schemes_that_measure_nothing_read_nothing_back(name: str, engine: str) -> None:
    run = made(*chosen(name), "participation.dropout=0.3", engine=engine)
    assert not run.measurements.of_clients
    for _ in range(3):
        under_guard(run)


# Dropout


@pytest.mark.parametrize("engine", ["loop", "stacked"])
def test_those_who_drop_out_are_not_averaged(engine: str) -> None:
    """The mean of the others by their sizes; one model fewer is sent up for each, and the budget is what it was."""
    run = made("participation.dropout=0.5", "seed=1", engine=engine)
    plan = plan_round(made("participation.dropout=0.5", "seed=1").sole_run)
    assert plan.reports is not None
    left = plan.ids[plan.reports]
    assert 0 < len(left) < 4, "the seed of this test"
    run.run_round()
    ends = []
    for k in left.tolist():
        alone = made("seed=1", engine="loop")
        alone.sole_run.experiment.participation.cohort = lambda _, k=k: Cohort(np.array([k]))  # type: ignore
        alone.run_round()
        ends.append(alone.state.model[0])
    sizes = torch.from_numpy(run.sole_run.shard_sizes[left].astype(float))
    torch.testing.assert_close(run.state.model[0], sizes / sizes.sum() @ torch.stack(ends), rtol=1e-12, atol=1e-12)
    payload = run.group.layout.size * 8
    assert (run.sole_run.traffic.bytes_down, run.sole_run.traffic.bytes_up) == (4 * payload, len(left) * payload)
    assert run.sole_run.samples == run.sole_run.computed == 4 * 2 * 4


def test_dropout_is_a_function_of_seed_round_and_client() -> None:
    rule = Uniform(dropout=0.3)
    everyone = rule.reports(np.arange(1000), 0, 5)
    some = np.array([3, 40, 999])
    assert rule.reports(some, 0, 5).tolist() == everyone[some].tolist()
    assert everyone.mean() == pytest.approx(0.7, abs=5 * np.sqrt(0.21 / 1000))
    assert everyone.tolist() != rule.reports(np.arange(1000), 0, 6).tolist()
    assert Uniform().reports(np.arange(9), 0, 5).all()


@pytest.mark.parametrize("server", ["sgd", "slowmo", "adam"])
def test_where_nobody_is_left_the_model_stays(server: str) -> None:
    run = made(f"server={server}")
    run.run_round()
    before = {name: tensor.clone() for name, tensor in run.state.tensors().items()}
    up, samples = run.sole_run.traffic.bytes_up, run.sole_run.samples
    run.sole_run.experiment.participation.dropout = 1 - 1e-12
    run.run_round()
    assert all(torch.equal(tensor, before[name]) for name, tensor in run.state.tensors().items())
    assert run.sole_run.traffic.bytes_up == up
    assert run.sole_run.samples == samples + 4 * 2 * 4
    run.sole_run.experiment.participation.dropout = 0.0
    run.run_round()
    assert not torch.equal(run.state.model, before["model"])


@pytest.mark.parametrize("engine", ["loop", "stacked"])
def test_of_a_cut_round_those_with_samples_may_be_the_ones_that_drop_out(engine: str) -> None:
    """What is left of the budget, two samples, are two clients'; whatever the others do, without these there is nothing to average."""
    lost = 0
    for seed in range(8):
        run = made("participation.dropout=0.5", f"seed={seed}", "rounds=null", f"samples={4 * 2 * 4 + 2}", engine=engine)
        run.run_round()
        before = run.state.model.clone()
        plan = made("participation.dropout=0.5", f"seed={seed}", "rounds=null", f"samples={4 * 2 * 4 + 2}", engine=engine).sole_run
        plan.samples, plan.round, plan.cursors = run.sole_run.samples, run.sole_run.round, run.sole_run.cursors.copy()
        reports = plan_round(plan).reports
        run.run_round()
        assert run.sole_run.finished and run.state.model.isfinite().all()
        if reports is not None and not reports.any():
            lost += 1
            assert torch.equal(run.state.model, before)
    assert 0 < lost < 8, "the seeds of this test"


def test_one_that_diverges_and_drops_out_does_no_harm() -> None:
    run = made("participation.dropout=0.999999999")
    run.sole_run.experiment.optimizer.lr = 1e200
    for _ in range(2):
        run.run_round()
        assert run.sole_run.lr == 1e200
    assert run.state.model.isfinite().all()


@dataclass
class Remembering(FedAvg):
    """Clients that count their steps and the rounds that they were told about, and begin at a place of their own."""

    own_starts: ClassVar[bool] = True
    needs_ends: ClassVar[bool] = True

    def client_state(self, models: Tensor, facts: Facts) -> dict[str, Tensor]:
        return {"steps": models.new_zeros(1, 1), "told": torch.zeros_like(models)}

    def start(self, state: State, clients: Clients) -> Tensor:
        return clients.receive(state.model) + torch.from_numpy(clients.ids)[:, None] / 100

    def step(self, rows: Rows, gradient: Gradient, batches: Sequence[Batch], j: int) -> None:
        super().step(rows, gradient, batches, j)
        rows.state["steps"] += 1

    def update(self, state: State, clients: Clients, starts: Tensor, ends: Tensor) -> None:
        self.seen = (clients.ids, clients.weights.tolist(), (ends - starts).abs().amax(1).tolist())
        clients.state["told"] += 1
        state.model.copy_(clients.mean(ends))


@pytest.mark.parametrize("engine", ["loop", "stacked"])
def test_a_client_that_drops_out_has_lost_its_round(engine: str) -> None:
    """Its state is what it was, its weight is 0, and what stands for its end is its own start; so too where nobody is left."""
    method = Remembering()
    run = made("participation.dropout=0.5", algorithm=method, engine=engine)
    reported, nobody = np.zeros(8), 0
    for number in range(12):
        if number == 5:
            run.sole_run.experiment.participation.dropout = 1 - 1e-12
        method.seen = (np.zeros(0, np.int64), [], [])
        before = run.state.model.clone()
        run.run_round()
        ids, weights, moved = method.seen
        nobody += len(ids) == 0
        assert torch.equal(run.state.model, before) == (not len(ids))
        for client, weight, distance in zip(ids, weights, moved, strict=True):
            reported[client] += weight > 0
            assert (weight > 0) == (distance > 0)
        run.sole_run.experiment.participation.dropout = 0.5
    assert nobody and reported.any()
    steps, told = (run.sole_run.clients.read(np.arange(8), f"state.{name}") for name in ("steps", "told"))
    assert steps[:, 0].tolist() == (2 * reported).tolist()
    assert told[:, 0].tolist() == reported.tolist()


def test_importance_sampling_stays_unbiased_when_clients_drop_out() -> None:
    """Weights are divided by how likely a client reports; over many rounds those of a cohort sum to 1."""
    e = experiment(*SMALL, "K=20", "C=0.2", "participation=importance", "participation.dropout=0.25")
    run = Trainer(e, engine="stacked")
    rests = []
    for run.sole_run.round in range(3000):
        rests.append(plan_round(run.sole_run).residual_weight)
    assert np.mean(rests) == pytest.approx(0, abs=5 * np.std(rests) / np.sqrt(len(rests)))
    assert np.std(rests) > 0.1


def test_unequal_work_of_clients_spends_the_budget() -> None:
    command = ("algorithm=fedavg", "K=20", "C=0.2", "local_steps.spread=0.5", "epochs=1")
    run = trainer(*command, "model.filters=1", "model.hidden=2", engine="stacked")
    lengths = set()
    while not run.finished:
        plan = plan_round(run.sole_run)
        lengths |= set(plan.samples.tolist())
        run.run_round()
    assert run.sole_run.samples == run.sole_run.experiment.budget
    assert len(lengths) > 2


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


def test_clients_without_samples_cannot_fill_a_cohort() -> None:
    e = experiment(*SMALL, "C=0.9", sharding=Uneven())
    e = replace(e, m=7)
    Trainer(e, engine="stacked").run_round()

    @dataclass
    class Half(Uneven):
        def shards(self, sample_owners: Any, K: int, N_c: int | None, seed: int) -> Shards:
            return Shards.from_sizes(np.arange(8), np.array([2, 2, 2, 2, 0, 0, 0, 0]))

    with pytest.raises(UserError, match=r"4 of 8 clients have samples, and 7 are needed; choose at most C=0.5"):
        Trainer(replace(e, sharding=Half()), engine="stacked")


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
