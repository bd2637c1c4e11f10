"""Shakespeare as a dataset: users, validation, what a trainer reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fl_hydra.data.shakespeare import Shakespeare, ShakespeareSequences, TextDataset
from fl_hydra.data.shakespeare_text import PAD, WINDOW, sequences
from fl_hydra.errors import UserError
from fl_hydra.training.text import Text
from tests.support.make import write_shakespeare


def small(**fields: object) -> Shakespeare:
    return Shakespeare(**{"users": 4, "min_samples": 900, **fields})  # type: ignore[arg-type]


def test_a_census_counts_what_the_split_holds(tmp_path: Path) -> None:
    write_shakespeare(tmp_path)
    for dataset in (small(), small(validation=0.0), small(users=None), ShakespeareSequences(users=3)):
        for seed in (0, 1):
            split = dataset.split(tmp_path, seed)
            census = dataset.census(dataset.card(tmp_path), seed)
            assert census.total == len(split.train) == split.population.total
            assert split.population.users is not None and census.users is not None
            assert np.bincount(split.population.users).tolist() == census.users.tolist()
            assert census.classes is None and split.population.labels is None
            assert len(census.users) == len(split.users) == (dataset.users or 6)


def test_users_are_drawn_by_the_split_seed_alone_among_those_with_enough(tmp_path: Path) -> None:
    write_shakespeare(tmp_path)
    chosen = [small().split(tmp_path, seed).users for seed in range(20)]
    assert small().split(tmp_path, 3).users == chosen[3]
    assert len(set(chosen)) > 5 and set().union(*chosen) == set(small(users=None).split(tmp_path, 0).users)
    counts, tests = [900, 100, 2000, 5, 0], [21, 10, 200, 0, 7]
    assert small(users=None, min_samples=1000).chosen(counts, tests, 0).tolist() == [0, 2]  # 900 + 79 + 21 is enough
    assert small(users=None, min_samples=1001).chosen(counts, tests, 0).tolist() == [2]
    assert small(users=None, min_samples=1).chosen(counts, tests, 0).tolist() == [0, 1, 2, 3]  # who only tests does not train


@pytest.mark.parametrize("validation", [0.0, 0.1, 0.3])
def test_no_target_of_one_set_is_in_an_input_of_another_and_sets_follow_in_time(tmp_path: Path, validation: float) -> None:
    write_shakespeare(tmp_path)
    dataset = small(users=1, validation=validation)
    split = dataset.split(tmp_path, 0)
    train, held, test = (np.sort(starts) for starts in (split.train, split.validation, split.test))
    for earlier, later in ((train, held), (held, test), (train, test)):
        if len(earlier) and len(later):
            # LEAF's gap: the last training target is the first character of the next set, and no more.
            assert earlier[-1] + WINDOW <= later[0]
    official = len(train) + len(held) + (79 if len(held) else 0)
    assert official in dataset.card(tmp_path).train_counts and len(held) == int(validation * official)


def test_the_test_set_is_the_same_however_windows_are_dealt_and_in_any_validation(tmp_path: Path) -> None:
    write_shakespeare(tmp_path)
    one, other = small().split(tmp_path, 0), small(validation=0.0).split(tmp_path, 0)
    assert one.test.tolist() == other.test.tolist()


def test_windows_and_their_targets_on_the_device(tmp_path: Path) -> None:
    path = write_shakespeare(tmp_path)
    split = small().split(tmp_path, 0)
    text = Text(split.characters, split.train, WINDOW, everywhere=False)
    indices = torch.tensor([0, 7, len(split.train) - 1])
    for row, target, start in zip(text.plain(indices), text.targets[indices], split.train[indices.numpy()], strict=True):
        assert row.tolist() == split.characters[start : start + 80].tolist() and target == split.characters[start + 80]
    tokens = sequences(path).train.tokens
    whole = Text(tokens.ravel(), np.arange(len(tokens)) * 81, WINDOW, everywhere=True)
    inputs, targets = whole.plain(torch.arange(len(tokens))), whole.targets
    assert (inputs.numpy() == tokens[:, :80]).all()
    assert (torch.where(targets < 0, PAD, targets).numpy() == tokens[:, 1:]).all() and (targets[tokens[:, 1:] == PAD] == -100).all()


@pytest.mark.parametrize(
    ("dataset", "says"),
    [
        (small(users=7), "dataset.users=7: 6 of the 6 users"),
        (small(min_samples=10**6), "0 of the 6 users have dataset.min_samples=1000000"),
    ],
)
def test_more_users_than_there_are(tmp_path: Path, dataset: TextDataset, says: str) -> None:
    write_shakespeare(tmp_path)
    with pytest.raises(UserError, match=says) as error:
        dataset.census(dataset.card(tmp_path))
    assert "\n" not in str(error.value)


def test_bad_settings() -> None:
    for fields in ({"users": 0}, {"min_samples": 0}, {"validation": 1.0}):
        with pytest.raises(UserError):
            small(**fields)
