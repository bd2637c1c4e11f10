"""Divisions by Dirichlet draws: their moments, classes and sizes."""

from __future__ import annotations

import numpy as np
import pytest

from fl_hydra.data.sample_owners import SampleOwners
from fl_hydra.sharding.dirichlet import Dirichlet
from fl_hydra.sharding.dirichlet_classes import DirichletClasses
from fl_hydra.sharding.proportions import in_proportion, log_dirichlet
from fl_hydra.sharding.quantity import Quantity
from tests.support.divisions import assert_partition, labels_of


def test_dirichlet_draws_have_the_moments_of_the_distribution() -> None:
    """Mean p and variance p (1 - p) / (alpha + 1), also where most proportions underflow."""
    n, prior = 20_000, np.array([0.5, 0.3, 0.15, 0.05])
    for alpha in (1e-100, 0.01, 0.5, 30.0):
        logs = log_dirichlet(np.random.default_rng(0), np.tile(alpha * prior, (n, 1)))
        q = np.exp(logs)
        assert np.isfinite(logs).all()
        np.testing.assert_allclose(q.sum(1), 1, rtol=1e-12)
        variance = prior * (1 - prior) / (alpha + 1)
        assert (np.abs(q.mean(0) - prior) < 5 * np.sqrt(variance / n)).all()
        np.testing.assert_allclose(q.var(0), variance, rtol=0.1)


def test_dirichlet_draws_have_the_right_proportions_when_the_largest_are_gone() -> None:
    """At alpha -> 0 the order of classes is that of draws without replacement by the prior, however small they are."""
    n, prior = 20_000, np.array([0.6, 0.3, 0.1])
    order = log_dirichlet(np.random.default_rng(0), np.tile(1e-100 * prior, (n, 1))).argsort(1)[:, ::-1]
    second = np.bincount(order[order[:, 0] == 0, 1], minlength=3) / (order[:, 0] == 0).sum()
    np.testing.assert_allclose(second, [0, 0.75, 0.25], atol=0.02)


def test_whole_numbers_are_in_proportion_and_right_on_average() -> None:
    shares, total = np.array([0.013, 0.237, 0.5, 0.25]), 10
    whole = in_proportion(np.random.default_rng(0), np.tile(shares, (20_000, 1)), np.full(20_000, total))
    assert (whole.sum(1) == total).all()
    assert (np.abs(whole - shares * total) < 1).all()
    np.testing.assert_allclose(whole.mean(0), shares * total, atol=0.02)


@pytest.mark.parametrize(
    ("alpha", "least", "mean", "most", "tolerance"),
    [(0, 1, 1.00, 1, (0, 0, 0)), (0.5, 2, 5.13, 13, (1, 0.3, 2)), (1000, 42, 98.82, 100, (4, 0.5, 0))],
)
def test_classes_of_a_client_are_as_many_as_in_the_released_split(
    alpha: float, least: int, mean: float, most: int, tolerance: tuple[float, float, float]
) -> None:
    """Hsu et al. 2019, CIFAR-100, 100 clients of 500 images; their split is one draw, here is the mean over seeds."""
    classes = np.array([(Dirichlet(alpha=alpha).divide(np.full(100, 500), 100, seed) > 0).sum(1) for seed in range(12)])
    found = classes.min(1).mean(), classes.mean(), classes.max(1).mean()
    assert (np.abs(np.subtract(found, (least, mean, most))) <= tolerance).all(), found


@pytest.mark.parametrize(("alpha", "mean"), [(0.0, 1.0), (0.05, 1.32), (1.0, 4.78), (100.0, 9.9)])
def test_classes_of_a_client_are_as_many_as_in_the_released_split_of_cifar10(alpha: float, mean: float) -> None:
    classes = np.array([(Dirichlet(alpha=alpha).divide(np.full(10, 5000), 100, seed) > 0).sum(1) for seed in range(12)])
    assert abs(classes.mean() - mean) < 0.2


def test_a_clients_samples_are_its_proportions_and_no_draw_from_them() -> None:
    """In the released split at alpha=1000 the first client's counts have variance 2.46; the Dirichlet alone gives 2.47, and 0.17 more
    are of rounding. A multinomial draw would give 7.4."""
    variance = np.median([Dirichlet(alpha=1000).divide(np.full(100, 500), 100, seed).var(1) for seed in range(5)])
    assert 2.2 < variance < 3.2


def test_alpha_means_other_things_for_clients_and_for_classes() -> None:
    counts = np.full(100, 450)
    labels = labels_of(counts)
    shards = [sharding.shards(SampleOwners.of_labels(labels), 100, None, 0) for sharding in (Dirichlet(), DirichletClasses(equal=True))]
    few, many = (np.mean([len(np.unique(labels[one[k]])) for k in range(100)]) for one in shards)
    assert few < 6 < 70 < many


def test_shares_of_a_class_are_dirichlet() -> None:
    """A client's share of a class has mean 1/K and the variance of Dir(alpha, ..., alpha); rounding adds at most a sample."""
    K, counts, alpha = 8, np.array([4000, 6000, 2000]), 0.7
    shares = np.array([DirichletClasses(alpha=alpha).divide(counts, K, seed).taken / counts for seed in range(400)])
    variance = (1 / K) * (1 - 1 / K) / (K * alpha + 1)
    assert np.abs(shares.mean(0) - 1 / K).max() < 5 * np.sqrt(variance / 400)
    np.testing.assert_allclose(shares.var(0).mean(), variance, rtol=0.05)


@pytest.mark.parametrize("alpha", [0.3, 1.0, 5.0])
def test_equal_sizes_change_class_proportions_only_as_far_as_needed(alpha: float) -> None:
    """Balanced by factors of rows and columns, the table keeps its odds ratios, up to rounding to whole samples."""
    counts = np.array([6000, 4000, 5000, 9000])
    free, equal = (DirichletClasses(alpha=alpha, equal=equal).divide(counts, 6, seed=1).taken for equal in (False, True))
    assert (equal.sum(0) == counts).all()
    assert equal.sum(1).max() - equal.sum(1).min() <= 1
    compared = 0
    for a in range(6):
        for c in range(4):
            cells = [(a, c), ((a + 1) % 6, (c + 1) % 4), (a, (c + 1) % 4), ((a + 1) % 6, c)]
            if min(table[cell] for table in (free, equal) for cell in cells) >= 50:
                before, after = (table[cells[0]] / table[cells[2]] * table[cells[1]] / table[cells[3]] for table in (free, equal))
                assert after == pytest.approx(before, rel=0.15)
                compared += 1
    assert compared


def test_quantity_skew_is_in_sizes_and_not_in_classes() -> None:
    labels, K, alpha = labels_of([3000] * 4), 10, 0.5
    sizes = []
    for seed in range(300):
        shards = Quantity(alpha=alpha, min_size=3).shards(SampleOwners.of_labels(labels), K, None, seed)
        assert_partition(shards, len(labels), K, equal=False)
        assert shards.sizes.min() >= 3
        sizes.append(shards.sizes)
        large = labels[shards[int(shards.sizes.argmax())]]
        assert np.abs(np.bincount(large, minlength=4) / len(large) - 0.25).max() < 6 * np.sqrt(0.19 / len(large))
    shares = (np.array(sizes) - 3) / (len(labels) - 3 * K)
    variance = (1 / K) * (1 - 1 / K) / (K * alpha + 1)
    assert np.abs(shares.mean(0) - 1 / K).max() < 5 * np.sqrt(variance / 300)
    assert shares.var(0).mean() == pytest.approx(variance, rel=0.1)


def test_quantity_skew_needs_no_labels() -> None:
    assert_partition(Quantity().shards(SampleOwners(500), 20, None, 0), 500, 20, equal=False)
