"""Shakespeare: every role of every play is a user. Two tasks: LEAF's windows, and the sequences of Reddi et al."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fl_hydra.arrays import Indices
from fl_hydra.data import shakespeare_text as text
from fl_hydra.data.dataset import Dataset, DatasetInfo, datasets
from fl_hydra.data.sample_owners import SampleCounts, SampleOwners
from fl_hydra.errors import require
from fl_hydra.randomness import generator


@dataclass(frozen=True)
class TextArrays:
    """Text as a trainer reads it: inputs are pieces of one array of characters.

    characters: uint8 [T]. train, test: int64 [N], where each official sample begins, ordered by user, then as in the source.
    train_users, test_users: int64 [N], whose each sample is. users: names.
    """

    characters: NDArray[np.uint8]
    train: Indices
    train_users: Indices
    test: Indices
    test_users: Indices
    users: tuple[str, ...]

    def fingerprint(self) -> str:
        """SHA-256 of the content; 64 hex digits."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256("\n".join(self.users).encode())
        for array in (self.characters, self.train, self.train_users, self.test, self.test_users):
            digest.update(f"{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


@dataclass(frozen=True)
class TextSplit:
    """Where the samples of a run's three sets begin in the characters, int64 [N] each, and whose they are.

    validation_users, test_users: int64 [N], numbers of users that train; -1 of others.
    """

    characters: NDArray[np.uint8]
    train: Indices
    validation: Indices
    test: Indices
    sample_owners: SampleOwners
    validation_users: Indices
    test_users: Indices
    users: tuple[str, ...]


@dataclass
class TextDataset(Dataset):
    """Text by user. The last part of each user's training samples is held out for validation; a user who has too few for both trains
    with all of them."""

    text: str | None = None
    """The raw text, a json file of LEAF, or a folder with its `train/` and `test/`; null: looked for in the data folder, or downloaded."""
    users: int | None = None
    """How many users take part, drawn by `split_seed` among those with enough samples; null: all of those."""
    min_samples: int = 2
    """Samples that a user must have, before any split (LEAF's `-k`)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.users is None or self.users >= 1, f"dataset.users={self.users}: at least 1 user is needed; leave it out for all")
        require(self.min_samples >= 1, f"dataset.min_samples={self.min_samples}: at least 1 is needed")

    alphabet: ClassVar[int]
    """Number of characters."""
    everywhere: ClassVar[bool] = False
    """Whether every position of an input has a target."""
    gap: ClassVar[int] = 0
    """Samples left out between training and validation, so that no target of one is in an input of the other."""

    def identity(self) -> dict[str, Any]:
        return {key: value for key, value in super().identity().items() if key != "text"}  # its fingerprint names the content

    @abstractmethod
    def read(self, path: Path) -> TextArrays:
        """Read all of the text.

        Raises:
            UserError: it is truncated, corrupted or of another kind.
        """

    def source(self, root: Path) -> Path:
        return text.find(root, self.text)

    def load(self, root: Path) -> TextArrays:
        """All of the text; read once per process."""
        return _load(self.name, self.source(root.resolve()))

    def describe(self, root: Path) -> DatasetInfo:
        corpus = self.load(root)
        train, test = (tuple(np.bincount(users, minlength=len(corpus.users)).tolist()) for users in (corpus.train_users, corpus.test_users))
        return DatasetInfo(corpus.fingerprint(), (text.WINDOW,), self.alphabet, train, test, self.everywhere)

    def chosen(self, train: Sequence[int], test: Sequence[int], split_seed: int) -> Indices:
        """The users that take part, ascending: drawn by `split_seed` among those with enough of these training and test samples.

        Raises:
            UserError: too few users have enough.
        """
        counts, tests = np.array(train, np.int64), np.array(test, np.int64)
        whole = counts + np.where(tests > 0, tests + self.gap, 0)
        eligible = np.flatnonzero((counts > 0) & (whole >= self.min_samples))
        wanted = len(eligible) if self.users is None else self.users
        require(
            0 < wanted <= len(eligible),
            f"dataset.users={self.users}: {len(eligible)} of the {len(counts)} users have dataset.min_samples={self.min_samples} samples "
            f"(the most any has is {whole.max()}); choose fewer users or a lower minimum",
        )
        return np.sort(generator(split_seed, "users").permutation(eligible)[:wanted])

    def _held_out(self, counts: Indices) -> tuple[Indices, Indices]:
        """From each user's number of training samples, int64 [users]: how many remain for training, and how many are for validation."""
        held = (self.validation * counts).astype(np.int64)
        rest = counts - held - self.gap
        possible = (held > 0) & (rest > 0)  # a user with too few samples trains with all of them
        return np.where(possible, rest, counts), np.where(possible, held, 0)

    def sample_counts(self, info: DatasetInfo, split_seed: int = 0) -> SampleCounts:
        users = self.chosen(info.train_counts, info.test_counts, split_seed)
        remaining, held = self._held_out(np.array(info.train_counts, np.int64)[users])
        require(
            not self.validation or bool(held.any()),
            f"dataset.validation={self.validation}: no user has samples enough for it and for training; choose a fraction around 0.1, or 0",
        )
        return SampleCounts(int(remaining.sum()), users=remaining)

    def sample_owners(self, root: Path, split_seed: int) -> SampleOwners:
        return self.split(root, split_seed).sample_owners

    def split(self, root: Path, split_seed: int) -> TextSplit:
        """The training, validation and test sets of the chosen users."""
        corpus = self.load(root)
        count = len(corpus.users)
        of_train = np.bincount(corpus.train_users, minlength=count)
        of_test = np.bincount(corpus.test_users, minlength=count)
        users = self.chosen(of_train.tolist(), of_test.tolist(), split_seed)
        remaining, held = self._held_out(of_train[users])
        first = np.concatenate([[0], np.cumsum(of_train)])[users]
        train = np.concatenate([corpus.train[at : at + rest] for at, rest in zip(first, remaining, strict=True)])
        last = first + of_train[users]
        validation = np.concatenate([corpus.train[end - some : end] for end, some in zip(last, held, strict=True)])
        # Users with test samples only (LEAF's split by user) are in the test set whichever users train.
        testing = np.isin(np.arange(count), users) | (of_train == 0)
        tested = testing[corpus.test_users]
        test = corpus.test[tested]
        numbers = np.full(count, -1)
        numbers[users] = np.arange(len(users))
        return TextSplit(
            corpus.characters,
            train,
            _shuffled(validation),
            _shuffled(test),
            SampleOwners(len(train), users=np.repeat(np.arange(len(users)), remaining)),
            _shuffled(np.repeat(np.arange(len(users)), held)),
            _shuffled(numbers[corpus.test_users[tested]]),
            tuple(corpus.users[user] for user in users),
        )


def _shuffled(samples: Indices) -> Indices:
    """Shuffled in an order that never changes, so that the first ones are a fair sample of all."""
    return samples[generator(0, "evaluation").permutation(len(samples))]


@datasets.register
@dataclass
class Shakespeare(TextDataset):
    """LEAF's task: predict the character after 80 others of a user's text; windows advance by one. Alphabet of 80.

    As in LEAF, the first nine tenths of a user's windows are for training and the last tenth is for testing; the last tenth of the
    training windows is for validation. Between two sets 79 windows are left out.
    """

    name: str = "shakespeare"
    users: int | None = 100
    min_samples: int = 2000

    alphabet: ClassVar[int] = len(text.LEAF_ALPHABET)
    gap: ClassVar[int] = text.WINDOW - 1

    def read(self, path: Path) -> TextArrays:
        samples = text.read(path)
        train, test = ((windows.starts.astype(np.int64), windows.users.astype(np.int64)) for windows in (samples.train, samples.test))
        return TextArrays(samples.characters, *train, *test, samples.users)


@datasets.register
@dataclass
class ShakespeareSequences(TextDataset):
    """The task of Reddi et al. (ICLR 2021): predict every character of a speech from those before it. Vocabulary of 90, with padding.

    The last fifth of a user's speeches is for testing; the last tenth of its training sequences is for validation.
    """

    name: str = "shakespeare_sequences"

    alphabet: ClassVar[int] = text.VOCABULARY
    everywhere: ClassVar[bool] = True

    def read(self, path: Path) -> TextArrays:
        found = text.sequences(path)
        characters = np.concatenate([found.train.tokens, found.test.tokens]).ravel()
        starts = np.arange(len(found.train.tokens) + len(found.test.tokens), dtype=np.int64) * text.SEQUENCE
        border = len(found.train.tokens)
        return TextArrays(
            characters,
            starts[:border],
            found.train.users.astype(np.int64),
            starts[border:],
            found.test.users.astype(np.int64),
            found.users,
        )


@lru_cache(maxsize=2)
def _load(name: str, source: Path) -> TextArrays:
    dataset = datasets[name]()
    assert isinstance(dataset, TextDataset)
    return dataset.read(source)
