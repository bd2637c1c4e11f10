"""The base of datasets: samples in a canonical order, identified by a fingerprint of their content."""

from __future__ import annotations

import dataclasses
import json
from abc import abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fl_hydra.data.sample_owners import SampleCounts, SampleOwners
from fl_hydra.errors import UserError, require
from fl_hydra.files import read_file, remove_abandoned, write_atomically
from fl_hydra.registry import Component, Registry


@dataclass(frozen=True)
class DatasetInfo:
    """What checks and run names need to know of a dataset; kept beside the data, so that these need not be read.

    fingerprint: SHA-256 of the content. shape: of an input, (channels, height, width) of an image or (positions,) of a text. classes:
    how many values a target can have. train_counts, test_counts: official training and test samples of each class (images) or of each
    user (text). everywhere: whether every position of an input has a target. clients: official training images of each class at each of
    the dataset's own clients, [clients][classes]; empty if it has none.
    """

    fingerprint: str
    shape: tuple[int, ...]
    classes: int
    train_counts: tuple[int, ...]
    test_counts: tuple[int, ...]
    everywhere: bool = False
    clients: tuple[tuple[int, ...], ...] = ()

    @property
    def textual(self) -> bool:
        """Whether inputs are sequences of characters rather than images."""
        return len(self.shape) == 1

    @property
    def targets(self) -> int:
        """Number of targets of a sample."""
        return self.shape[0] if self.everywhere else 1


@dataclass
class Dataset(Component):
    """A dataset: where its samples come from, and how much is held out."""

    validation: float = 0.1
    """Fraction of the official training set that is held out; of each class or of each user alike."""

    def __post_init__(self) -> None:
        require(0 <= self.validation < 1, f"dataset.validation={self.validation}: a fraction in [0, 1) of the training set is needed")

    @abstractmethod
    def source(self, root: Path) -> Path | None:
        """The file or folder to read, which is made or downloaded if need be; None if the data come with a package.

        Raises:
            UserError: there is no such file and no way to get it.
        """

    @property
    def card(self) -> str:
        """What the small files beside the data are called after: the name, and what tells apart different data of one dataset."""
        return self.name

    def stamp(self, source: Path | None) -> list[Any]:
        """What changes when the data do, found without reading them: versions, or sizes and times of files."""
        if source is None:
            return [version("scikit-learn")]
        if source.is_dir():
            return [[str(path.relative_to(source)), *size_and_time(path)] for path in sorted(source.rglob("*.json"))]
        return [source.name, *size_and_time(source)]

    @abstractmethod
    def describe(self, root: Path) -> DatasetInfo:
        """The dataset's description, computed from the data.

        Raises:
            UserError: a file is missing, truncated, corrupted or of another kind.
        """

    @abstractmethod
    def sample_counts(self, info: DatasetInfo, split_seed: int = 0) -> SampleCounts:
        """How many samples remain for training after the validation split.

        Raises:
            UserError: more samples or users are requested than there are.
        """

    @abstractmethod
    def sample_owners(self, root: Path, split_seed: int) -> SampleOwners:
        """The samples that remain for training: their labels, or whose they are."""

    def info(self, root: Path) -> DatasetInfo:
        """The description, from the small file beside the data if that is up to date, else from the data."""
        root = root.resolve()
        return read_info(self.name, self.source(root), root, json.dumps(dataclasses.asdict(self)))

    def check_loaded(self, root: Path, info: DatasetInfo) -> None:
        """Check that the data as loaded are those that the run was named after.

        Raises:
            UserError: files changed after the description was read, or before it but with neither size nor time changed.
        """
        root = root.resolve()
        if self.describe(root) != info:
            kept = _info_path(self, root)
            try:
                kept.unlink(missing_ok=True)
                way_out = "what was cached of them is deleted: give the same command again"
            except OSError as error:
                way_out = f"delete {kept}, which cannot be done from here ({error.strerror}), and give the same command again"
            raise UserError(
                f"dataset={self.name}: the data in {self.source(root) or root} are not those that the run was named after; {way_out}"
            )


datasets: Registry[Dataset] = Registry("dataset", "fl_hydra.data")


@lru_cache(maxsize=8)
def read_info(name: str, source: Path | None, root: Path, settings: str) -> DatasetInfo:
    """The description of a dataset with these settings (JSON), from the file beside the data or from the data; cached."""
    dataset = datasets[name](**json.loads(settings))
    identity = {"version": dataset.version, "file": dataset.stamp(source)}
    path = _info_path(dataset, root)
    remove_abandoned(root)
    try:
        stored: dict[str, Any] = json.loads(read_file(path))
        if stored.pop("of") == identity:
            return DatasetInfo(**{key: _as_tuples(value) for key, value in stored.items()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # no description, or not one of ours: it is only a cache, so it is made again
    info = dataset.describe(root)
    try:
        root.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps({"of": identity, **dataclasses.asdict(info)}).encode())
    except OSError:
        pass  # a read-only data folder only costs reading the data again next time
    return info


def _as_tuples(value: Any) -> Any:
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


def _info_path(dataset: Dataset, root: Path) -> Path:
    return root / f".{dataset.card}.card.json"


def size_and_time(path: Path) -> list[int]:
    """Bytes of a file, and when it was changed, in nanoseconds."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]
