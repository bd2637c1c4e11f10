"""Divisions by classes: what can be divided, and that it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fl_hydra.data.sample_owners import SampleCounts, SampleOwners
from fl_hydra.errors import UserError
from fl_hydra.runs.identity import describe
from fl_hydra.sharding.base import equal_sizes
from fl_hydra.sharding.classes import Classes, integer_flow
from fl_hydra.sharding.divisions import UndecidedError, groups, holders
from tests.support.divisions import CIFAR_COUNTS, DIGIT_COUNTS, assert_partition, labels_of
from tests.support.make import experiment


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
            assert integer_flow(counts, holds, N_c, slack=np.inf) is not None, "images of each class that fit"
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
            assert integer_flow(counts, holds, N_c, slack=np.inf) is not None
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
