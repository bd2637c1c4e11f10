"""Divisions among clients: who gets which samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_hydra.data.sample_owners import SampleCounts, SampleOwners
from fl_hydra.errors import UserError
from fl_hydra.randomness import generator
from fl_hydra.report.runs import Run
from fl_hydra.runs.identity import describe, run_folder, run_hash
from fl_hydra.sharding import dirichlet_classes
from fl_hydra.sharding.base import Sharding, Shards, equal_sizes
from fl_hydra.sharding.classes import Classes, _flow
from fl_hydra.sharding.dirichlet import Dirichlet
from fl_hydra.sharding.dirichlet_classes import DirichletClasses
from fl_hydra.sharding.divisions import UndecidedError, groups, holders
from fl_hydra.sharding.iid import IID
from fl_hydra.sharding.natural import Natural
from fl_hydra.sharding.proportions import in_proportion, log_dirichlet
from fl_hydra.sharding.quantity import Quantity
from tests.conftest import Program
from tests.support.make import experiment

CIFAR_COUNTS = np.full(100, 450)
DIGIT_COUNTS = np.array([128, 131, 128, 131, 131, 131, 131, 129, 125, 130])


def labels_of(counts: Any) -> np.ndarray:
    return np.repeat(np.arange(len(counts)), counts)


def assert_partition(shards: Shards, total: int, K: int, equal: bool = True) -> None:
    assert sorted(shards.indices.tolist()) == list(range(total)), "disjoint and covering"
    assert len(shards.sizes) == K
    assert shards.sizes.min() >= 1
    assert not equal or shards.sizes.max() - shards.sizes.min() <= 1


@pytest.mark.parametrize("K", [1, 2, 7, 100, 1295])
def test_iid_shards(K: int) -> None:
    assert_partition(IID().shards(SampleOwners.of_labels(labels_of(DIGIT_COUNTS)), K, None, seed=3), 1295, K)


@pytest.mark.parametrize(
    ("counts", "K", "N_c"),
    [(CIFAR_COUNTS, 100, N_c) for N_c in (1, 5, 10, 50, 100)]
    + [(CIFAR_COUNTS, 50, 2), (CIFAR_COUNTS, 37, 7), (CIFAR_COUNTS, 200, 1), (CIFAR_COUNTS, 10, 10), (CIFAR_COUNTS, 99, 3)]
    + [(DIGIT_COUNTS, 10, 2), (DIGIT_COUNTS, 20, 2), (DIGIT_COUNTS, 100, 2), (DIGIT_COUNTS, 4, 3), (DIGIT_COUNTS, 7, 3)]
    + [(DIGIT_COUNTS, 8, 2), (CIFAR_COUNTS, 33, 4), (np.array([3, 3, 40, 2, 2, 4, 2, 4, 1]), 8, 2)],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_every_client_holds_exactly_n_c_classes(counts: Any, K: int, N_c: int, seed: int) -> None:
    labels = labels_of(counts)
    shards = Classes().shards(SampleOwners.of_labels(labels), K, N_c, seed)
    assert_partition(shards, len(labels), K)
    assert {len(np.unique(labels[shards[k]])) for k in range(K)} == {N_c}


def test_shares_of_classes_are_even_where_the_counts_allow() -> None:
    labels = labels_of(CIFAR_COUNTS)
    shards = Classes().shards(SampleOwners.of_labels(labels), 100, 5, seed=0)
    assert all((np.bincount(labels[shards[k]])[np.unique(labels[shards[k]])] == 90).all() for k in range(100))


@pytest.mark.parametrize(
    ("counts", "K", "N_c", "works"),
    [(CIFAR_COUNTS, 50, 1, (100, 2)), (CIFAR_COUNTS, 150, 1, (100, 2)), (DIGIT_COUNTS, 10, 1, (None, 2)), (DIGIT_COUNTS, 5, 2, (8, 3))],
)
def test_what_cannot_be_divided_is_refused_with_what_can(
    counts: Any,
    K: int,
    N_c: int,
    works: tuple[int | None, int],
) -> None:
    with pytest.raises(UserError) as refused:
        Classes().check(SampleCounts.of_classes(counts), K, N_c, seed=0)
    near_K, near_N_c = works
    assert f"N_c={near_N_c} with this K" in str(refused.value)
    Classes().check(SampleCounts.of_classes(counts), K, near_N_c, seed=0)
    if near_K is not None:
        assert f"K={near_K} with this N_c" in str(refused.value)
        Classes().check(SampleCounts.of_classes(counts), near_K, N_c, seed=0)


def integer_programme(counts: Any, K: int, N_c: int) -> bool:
    """Whether there is a division, by a general solver: binary `holds` and integer `taken`, both [K, classes]."""
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import block_array, eye_array, kron

    L, sizes = len(counts), equal_sizes(int(counts.sum()), K)
    per_client, per_class = kron(eye_array(K), np.ones((1, L))), kron(np.ones((1, K)), eye_array(L))
    at_most, one = kron(eye_array(K), np.diag(counts)), eye_array(K * L)
    rows = block_array([[per_client, None], [None, per_client], [per_class, None], [one, -at_most], [one, -one]])
    zero, free = np.zeros(K * L), np.full(K * L, np.inf)
    low = np.concatenate([sizes, np.full(K, N_c), counts, -free, zero])
    high = np.concatenate([sizes, np.full(K, N_c), counts, zero, free])
    bounds = Bounds(0, np.concatenate([np.tile(counts, K), np.tile(counts > 0, K)]))
    return milp(np.zeros(2 * K * L), integrality=1, bounds=bounds, constraints=LinearConstraint(rows, low, high)).x is not None


def test_counting_decides_as_an_integer_programme_does() -> None:
    """On 120 small requests, a good part of which is near the border of what can be divided."""
    rng = np.random.default_rng(1)
    answers: list[bool] = []
    while len(answers) < 120:
        L, K = rng.integers(1, 8, 2)
        N_c, most = int(rng.integers(1, min(L, 5) + 1)), rng.choice([2, 3, 6, 12, 30])
        counts = rng.integers(0, most + 1, L)
        counts[0] += rng.integers(0, 40) if rng.random() < 0.3 else 1
        if counts.sum() < K:
            continue
        parts = groups(counts, int(K), N_c)
        answers.append(parts is not None)
        assert answers[-1] == integer_programme(counts, int(K), N_c), (counts, K, N_c)
        if parts is not None:
            holds = holders(counts, parts, N_c)
            assert holds is not None
            assert (holds.sum(1) == N_c).all()
            assert _flow(counts, holds, N_c, slack=np.inf) is not None, "images of each class that fit"
    assert 30 < sum(answers) < 90


@pytest.mark.parametrize("seed", range(4))
def test_whatever_counting_allows_is_found(seed: int) -> None:
    """Of all sizes, with few and with many images, evenly and unevenly many of each class."""
    rng = np.random.default_rng(seed)
    found = 0
    for _ in range(100):
        L, K = int(rng.integers(2, 40)), int(rng.integers(1, 60))
        N_c = int(rng.integers(1, min(L, 12) + 1))
        counts = 1 + rng.multinomial(int(rng.integers(1, 2000)), rng.dirichlet(np.full(L, rng.choice([0.3, 3, 1000]))))
        try:
            parts = groups(counts, K, N_c, steps=2000)
        except UndecidedError:
            continue
        if parts is not None:
            holds = holders(counts, parts, N_c)
            assert holds is not None, (counts, K, N_c)
            assert (holds.sum(1) == N_c).all()
            assert _flow(counts, holds, N_c, slack=np.inf) is not None
            found += 1
    assert found > 20


@pytest.mark.parametrize(("K", "N_c", "says"), [(6, 2, "there is no division"), (7, 2, "there is no division"), (8, 2, "")])
def test_a_division_is_decided_without_a_word_and_without_a_clock(K: int, N_c: int, says: str, capfd: pytest.CaptureFixture[str]) -> None:
    """These went to a solver that wrote a line, and gave up after twenty seconds on one machine and not on another."""
    if says:
        with pytest.raises(UserError, match=says):
            Classes().check(SampleCounts.of_classes(DIGIT_COUNTS), K, N_c, seed=5)
    else:
        Classes().check(SampleCounts.of_classes(DIGIT_COUNTS), K, N_c, seed=5)
    assert capfd.readouterr() == ("", "")


def test_a_search_that_ends_without_an_answer_says_no_more_than_that() -> None:
    """A hundred classes, none like another, which twenty clients would have to part into sums that differ by at most one."""
    counts = np.arange(450, 550)
    with pytest.raises(UserError, match="K=20 N_c=5: found no division") as refused:
        Classes().check(SampleCounts.of_classes(counts), 20, 5, seed=0)
    assert str(refused.value).endswith("the nearest that work: K=25 with this N_c or N_c=6 with this K")


def test_shards_that_are_made_in_another_way_than_before_have_another_name() -> None:
    """The first release left K=8 N_c=2 of the digits to a solver; their draws never worked, and those of K=10 do."""
    common = ("algorithm=fedavg", "C=0.5", "sharding=classes", "N_c=2", "rounds=2")
    assert describe(experiment(*common, "K=8"))["revisions"] == {"sharding": 2}
    assert "revisions" not in describe(experiment(*common, "K=10"))
    sample_owners = SampleOwners.of_labels(labels_of(DIGIT_COUNTS))
    first, second = (Classes().shards(sample_owners, 8, 2, seed) for seed in (0, 1))
    assert not np.array_equal(first.indices, second.indices)


SHARDINGS = [
    IID(),
    *(Dirichlet(alpha=alpha) for alpha in (0, 1e-9, 0.05, 0.5, 10, 1e9)),
    *(DirichletClasses(alpha=alpha, equal=True) for alpha in (1e-6, 0.05, 0.5, 100)),
    *(DirichletClasses(alpha=alpha) for alpha in (1, 100)),
    *(Quantity(alpha=alpha) for alpha in (1e-6, 0.5, 100)),
]


@pytest.mark.parametrize("sharding", SHARDINGS, ids=str)
@pytest.mark.parametrize("K", [1, 2, 7, 100])
@pytest.mark.parametrize("counts", [DIGIT_COUNTS, [300, 0, 7, 1, 150]], ids=["digits", "uneven"])
def test_every_sample_goes_to_one_client(sharding: Sharding, K: int, counts: Any) -> None:
    """Equal sizes where they are promised, and at least one sample for each client."""
    labels = labels_of(counts)
    equal = not isinstance(sharding, Quantity) and getattr(sharding, "equal", True)
    for seed in range(3):
        try:
            sharding.check(SampleCounts.of_classes(np.array(counts)), K, None, seed)
        except UserError:
            assert isinstance(sharding, DirichletClasses) and K == 100
            continue
        assert_partition(sharding.shards(SampleOwners.of_labels(labels), K, None, seed), len(labels), K, equal)


@pytest.mark.parametrize("sharding", [s for s in SHARDINGS if not isinstance(s, DirichletClasses) or s.equal], ids=str)
def test_a_sample_for_each_client(sharding: Sharding) -> None:
    """As many clients as samples, the most there can be."""
    labels = labels_of([5, 9, 16])
    assert_partition(sharding.shards(SampleOwners.of_labels(labels), 30, None, 0), 30, 30)


@pytest.mark.parametrize("sharding", [IID(), Classes(), Dirichlet(), DirichletClasses(), DirichletClasses(equal=True), Quantity()], ids=str)
def test_shards_are_a_function_of_the_seed(sharding: Sharding) -> None:
    one, same, other = (sharding.shards(SampleOwners.of_labels(labels_of(DIGIT_COUNTS)), 20, 2, seed) for seed in (0, 0, 1))
    assert (one.indices.tolist(), one.offsets.tolist()) == (same.indices.tolist(), same.offsets.tolist())
    assert one.indices.tolist() != other.indices.tolist()


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
    shares = np.array([DirichletClasses(alpha=alpha)._divide(counts, K, seed).taken / counts for seed in range(400)])
    variance = (1 / K) * (1 - 1 / K) / (K * alpha + 1)
    assert np.abs(shares.mean(0) - 1 / K).max() < 5 * np.sqrt(variance / 400)
    np.testing.assert_allclose(shares.var(0).mean(), variance, rtol=0.05)


@pytest.mark.parametrize("alpha", [0.3, 1.0, 5.0])
def test_equal_sizes_change_class_proportions_only_as_far_as_needed(alpha: float) -> None:
    """Balanced by factors of rows and columns, the table keeps its odds ratios, up to rounding to whole samples."""
    counts = np.array([6000, 4000, 5000, 9000])
    free, equal = (DirichletClasses(alpha=alpha, equal=equal)._divide(counts, 6, seed=1).taken for equal in (False, True))
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


def test_natural_clients_are_the_users() -> None:
    users = np.array([2, 0, 0, 1, 2, 2, 0])
    sample_owners, sample_counts = SampleOwners(7, users=users), SampleCounts(7, users=np.bincount(users))
    Natural().check(sample_counts, 3, None, seed=0)
    shards = Natural().shards(sample_owners, 3, None, seed=0)
    assert [shards[k].tolist() for k in range(3)] == [[1, 2, 6], [3], [0, 4, 5]]


SAMPLE_COUNTS = SampleCounts.of_classes(DIGIT_COUNTS)
USERS = SampleCounts(700, users=np.full(100, 7))
REFUSED: list[tuple[Sharding, SampleCounts, int, str]] = [
    (
        Natural(),
        USERS,
        50,
        "K=50: sharding=natural has a client for each of the 100 users of the dataset; choose K=100, dataset.users=50 or sharding=iid",
    ),
    (Natural(), SAMPLE_COUNTS, 10, "this dataset has no users of its own; choose"),
    (Dirichlet(), USERS, 10, "sharding=dirichlet: divides by label"),
    (DirichletClasses(), USERS, 10, "sharding=dirichlet_classes: divides by label"),
    (Classes(), USERS, 10, "sharding=classes: divides by label"),
    *((sharding, SAMPLE_COUNTS, 1296, "choose K from 1 to 1295") for sharding in (Dirichlet(), DirichletClasses(), Quantity())),
    (DirichletClasses(equal=True), SAMPLE_COUNTS, 1296, "choose K from 1 to 1295"),
    (
        Quantity(min_size=20),
        SAMPLE_COUNTS,
        100,
        "2000 samples would be needed and there are 1295; choose sharding.min_size from 1 to 12, or K from 1 to 64",
    ),
    (DirichletClasses(min_size=20), SAMPLE_COUNTS, 100, "choose sharding.min_size from 1 to 12"),
    (Quantity(min_size=2000), SAMPLE_COUNTS, 10, "choose sharding.min_size from 1 to 129"),
    (DirichletClasses(alpha=0.01), SAMPLE_COUNTS, 100, "or sharding.equal=true"),
    (DirichletClasses(alpha=0.5, min_size=10), SAMPLE_COUNTS, 100, "or sharding.equal=true"),
    (DirichletClasses(alpha=1, min_size=12), SAMPLE_COUNTS, 100, "or sharding.equal=true"),
]


@pytest.mark.parametrize(("sharding", "sample_counts", "K", "says"), REFUSED)
def test_what_cannot_be_met_is_refused_in_one_line(sharding: Sharding, sample_counts: SampleCounts, K: int, says: str) -> None:
    with pytest.raises(UserError) as refused:
        sharding.check(sample_counts, K, 2, seed=0)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("alpha", "min_size"), [(0.01, 1), (0.5, 10), (1, 12)])
def test_what_is_offered_for_a_smallest_size_works(alpha: float, min_size: int) -> None:
    sharding = DirichletClasses(alpha=alpha, min_size=min_size)
    with pytest.raises(UserError) as refused:
        sharding.check(SAMPLE_COUNTS, 100, None, seed=0)
    *options, last = str(refused.value).split("choose ")[1].replace(" or ", ", ").split(", ")
    assert last == "sharding.equal=true"
    assert options
    for option in options:
        key, value = option.removeprefix("sharding.").split("=")
        number = float(value)
        better = DirichletClasses(
            alpha=number if key == "alpha" else alpha,
            min_size=int(number) if key == "min_size" else min_size,
        )
        better.check(SAMPLE_COUNTS, int(number) if key == "K" else 100, None, seed=0)


@pytest.mark.parametrize(("min_size", "seed", "draws"), [(5, 0, 1), (6, 2, 6), (6, 0, 10), (7, 1, 49)])
def test_draws_go_on_until_every_client_has_enough(min_size: int, seed: int, draws: int) -> None:
    """However unlikely that has become: these are the first of a hundred draws that suffice, and those before them do not."""
    counts, concentration = DIGIT_COUNTS, np.full((10, 100), 1.0)
    smallest = []
    for draw in range(draws):
        rng = generator(seed, "shards-dirichlet-classes", draw)
        taken = in_proportion(rng, np.exp(log_dirichlet(rng, concentration)), counts)
        smallest.append(taken.sum(0).min())
    assert max(smallest[:-1], default=0) < min_size <= smallest[-1]
    found = DirichletClasses(alpha=1, min_size=min_size)._divide(counts, 100, seed)
    assert np.array_equal(found.taken, taken.T)
    assert found.draws == draws


@pytest.mark.parametrize(("alpha", "min_size", "K"), [(0.01, 1, 3000), (0.5, 5, 5000), (100, 15, 3000), (0.1, 40, 1000)])
def test_what_cannot_be_met_is_refused_after_few_draws(alpha: float, min_size: int, K: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred of each of twenty settings took minutes. Counted in numbers, not in seconds, as a search depends on no clock."""
    drawn: list[int] = []

    def counted(rng: np.random.Generator, concentration: Any) -> Any:
        drawn.append(concentration.size)
        return log_dirichlet(rng, concentration)

    monkeypatch.setattr(dirichlet_classes, "log_dirichlet", counted)
    with pytest.raises(UserError, match="clients or more had fewer samples; choose"):
        DirichletClasses(alpha=alpha, min_size=min_size).check(SampleCounts.of_classes(CIFAR_COUNTS), K, None, seed=0)
    assert sum(drawn) < 25 * 100 * K


@pytest.mark.parametrize("alpha", [-1, -1e-9, float("nan"), float("inf"), 1e10])
@pytest.mark.parametrize("kind", [Dirichlet, DirichletClasses, Quantity])
def test_concentrations_out_of_range_are_refused(kind: Any, alpha: float) -> None:
    with pytest.raises(UserError, match=r"^sharding\.alpha=\S+: the concentration of sharding=\w+ is from"):
        kind(alpha=alpha)


@pytest.mark.parametrize("kind", [DirichletClasses, Quantity])
def test_zero_is_no_concentration_or_size(kind: Any) -> None:
    with pytest.raises(UserError, match=r"is from 1e-100"):
        kind(alpha=0)
    with pytest.raises(UserError, match=r"sharding\.min_size=0: every client needs at least 1 sample"):
        kind(min_size=0)


NAMES = {
    "": ("K100-C0.1-J4-B64", "FedAvg K=100 C=0.1 J=4, iid"),
    "sharding=classes N_c=2": ("K100-C0.1-J4-Nc2-B64", "FedAvg K=100 C=0.1 J=4, N_c=2"),
    "sharding=dirichlet sharding.alpha=0": ("K100-C0.1-J4-alpha0-B64", "FedAvg K=100 C=0.1 J=4, alpha=0"),
    "sharding=dirichlet sharding.alpha=1000": ("K100-C0.1-J4-alpha1000-B64", "FedAvg K=100 C=0.1 J=4, alpha=1000"),
    "sharding=dirichlet_classes sharding.alpha=10": ("K100-C0.1-J4-classalpha10-B64", "FedAvg K=100 C=0.1 J=4, per-class alpha=10"),
    "sharding=dirichlet_classes sharding.equal=true": (
        "K100-C0.1-J4-classalpha0.5eq-B64",
        "FedAvg K=100 C=0.1 J=4, per-class alpha=0.5 equal",
    ),
    "sharding=quantity": ("K100-C0.1-J4-quantity0.5-B64", "FedAvg K=100 C=0.1 J=4, quantity alpha=0.5"),
}


@pytest.mark.parametrize("overrides", NAMES)
def test_folders_and_labels_tell_divisions_apart(overrides: str) -> None:
    e = experiment("algorithm=fedavg", *overrides.split())
    folder, label = NAMES[overrides]
    assert run_folder(e, Path("outputs")).name.startswith(f"{folder}-s0-")
    assert Run(Path("nowhere"), describe(e), [{}], "finished").label == label


def test_a_smallest_size_is_in_the_name_only_where_it_has_an_effect() -> None:
    def names(*overrides: str) -> set[str]:
        return {run_hash(experiment("algorithm=fedavg", "K=4", *overrides, f"sharding.min_size={size}")) for size in (1, 2)}

    assert len(names("sharding=dirichlet_classes")) == len(names("sharding=quantity")) == 2
    assert len(names("sharding=dirichlet_classes", "sharding.equal=true")) == 1
    DirichletClasses(min_size=10**6, equal=True).check(SAMPLE_COUNTS, 10, None, seed=0)


@pytest.mark.parametrize("sharding", ["dirichlet sharding.alpha=0.3", "dirichlet_classes sharding.equal=true", "quantity"])
def test_a_run_on_unequal_clients(sharding: str, program: Program, tmp_path: Path) -> None:
    result = program("algorithm=fedavg", *f"sharding={sharding}".split(), "K=10", "rounds=3", "evaluation.points=1", cwd=tmp_path)
    assert result.status == 0, result.output
    (summary,) = tmp_path.rglob("summary.json")
    assert json.loads(summary.read_text())["metrics"]["round"] == 3


def test_a_run_writes_what_its_clients_hold(program: Program, tmp_path: Path) -> None:
    words = ("algorithm=fedavg", "K=20", "C=0.2", "rounds=2", "sharding=classes", "N_c=2", "participation=skewed", "gamma=0.5")
    assert program(*words, cwd=tmp_path).status == 0
    (path,) = tmp_path.glob("outputs/digits/fedavg/*/clients.json")
    held = json.loads(path.read_text())
    counts = np.array(held["counts"])
    assert held["kind"] == "classes" and counts.shape == (20, len(held["names"]))
    assert ((counts > 0).sum(1) == 2).all()
    assert counts.sum(1).tolist() == held["sizes"]
    assert sum(held["probabilities"]) == pytest.approx(1.0) and len(set(held["probabilities"])) == 20
