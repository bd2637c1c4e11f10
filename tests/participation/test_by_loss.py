"""Power-of-choice, active federated learning and Oort, on cases small enough to be worked out."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from fl_hydra.participation.base import Round
from fl_hydra.participation.by_loss import ActiveFL, Oort, PowerOfChoice
from tests.support.cohorts import ONES, simulate, successive


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
