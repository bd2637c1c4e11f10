"""Parts of shards that are withheld from training."""

from __future__ import annotations

import numpy as np
import pytest

from fl_hydra.sharding.base import Shards
from fl_hydra.sharding.withheld import withhold


def shards_of(*sizes: int) -> Shards:
    return Shards.from_sizes(np.random.default_rng(0).permutation(sum(sizes)), np.array(sizes))


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("part", [0.05, 0.2, 0.5, 0.99])
def test_they_are_disjoint_and_one_sample_stays(part: float, labelled: bool) -> None:
    shards = shards_of(1, 2, 3, 10, 41, 100, 0)
    labels = np.random.default_rng(1).integers(0, 5, 157) if labelled else None
    train, validation, test = withhold(shards, labels, part, seed=3)
    for client, size in enumerate(shards.sizes.tolist()):
        pieces = [each[client] for each in (train, validation, test)]
        assert sorted(np.concatenate(pieces).tolist()) == sorted(shards[client].tolist())
        held = len(pieces[1]) + len(pieces[2])
        assert held == (min(int(part * size + 0.5), size - 1) if size else 0)
        assert len(pieces[2]) - len(pieces[1]) in (0, 1), "half and half"
        assert size == 0 or len(pieces[0]) >= 1


def test_classes_have_their_shares() -> None:
    """40 of 200 samples, 20 for each set: of classes with 100, 60 and 40 samples 10, 6 and 4, but for one that rounding may move."""
    labels = np.repeat([0, 1, 2], [100, 60, 40])
    _, validation, test = withhold(Shards.from_sizes(np.arange(200), np.array([200])), labels, 0.2, seed=0)
    for each in (validation, test):
        counts = np.bincount(labels[each[0]], minlength=3)
        assert counts.sum() == 20 and np.abs(counts - [10, 6, 4]).max() <= 1


def test_they_are_a_function_of_seed_and_client() -> None:
    labels = np.random.default_rng(1).integers(0, 5, 130)
    one, other = shards_of(30, 100), shards_of(30, 100)
    cut = Shards.from_sizes(np.concatenate([other[0], other[1][:50]]), np.array([30, 50]))
    first = [each[0].tolist() for each in withhold(one, labels, 0.3, seed=0)]
    assert first == [each[0].tolist() for each in withhold(cut, labels, 0.3, seed=0)], "whatever others hold"
    assert first != [each[0].tolist() for each in withhold(one, labels, 0.3, seed=1)]


def test_of_texts_the_end_is_withheld() -> None:
    """Windows overlap: those of an evaluation begin after the last that is trained with, so that none of their targets is in one."""
    train, validation, test = withhold(Shards.from_sizes(np.arange(100), np.array([60, 40])), None, 0.2, seed=0)
    assert [each[0].tolist() for each in (train, validation, test)] == [[*range(48)], [*range(48, 54)], [*range(54, 60)]]
    assert train[1].max() < validation[1].min() and validation[1].max() < test[1].min()
