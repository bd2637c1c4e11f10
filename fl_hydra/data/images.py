"""Datasets of labelled images: uint8, in a canonical order."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from fl_hydra.arrays import Indices
from fl_hydra.data.dataset import Dataset, DatasetInfo, datasets
from fl_hydra.data.held_out import held_of_clients, members_held
from fl_hydra.data.sample_owners import SampleCounts, SampleOwners
from fl_hydra.errors import UserError, require
from fl_hydra.files import write_atomically
from fl_hydra.randomness import generator


@dataclass(frozen=True)
class Arrays:
    """Images uint8 [N, height, width, channels] and labels int64 [N] of the official training and test sets.

    train_clients: int64 [N], whose each training image is, numbered from 0; None if the dataset has no clients of its own.
    """

    train_images: NDArray[np.uint8]
    train_labels: Indices
    test_images: NDArray[np.uint8]
    test_labels: Indices
    train_clients: Indices | None = None

    def canonical(self) -> Arrays:
        """The same images ordered by label, then by pixel bytes, so that results do not depend on the file they came from."""
        train = canonical_order(self.train_images, self.train_labels, self.train_clients)
        test = canonical_order(self.test_images, self.test_labels)
        clients = None if self.train_clients is None else self.train_clients[train]
        return Arrays(self.train_images[train], self.train_labels[train], self.test_images[test], self.test_labels[test], clients)

    def owners(self, chosen: Indices) -> SampleOwners:
        """The labels of some training images, by position, and whose they are."""
        users = None if self.train_clients is None else self.train_clients[chosen]
        return SampleOwners(len(chosen), labels=self.train_labels[chosen], users=users)

    def fingerprint(self) -> str:
        """SHA-256 of shapes and content; 64 hex digits."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256()
        for field in dataclasses.fields(self):
            array = getattr(self, field.name)
            if array is None:
                continue
            digest.update(f"{field.name}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


def canonical_order(images: NDArray[np.uint8], labels: Indices, clients: Indices | None = None) -> Indices:
    """Positions of images ordered by label, then by pixel bytes, and equal images by their client."""
    flat = np.ascontiguousarray(images).reshape(len(images), -1)
    pixels = flat.view(f"V{flat.shape[1]}").ravel()
    if clients is None:
        order = np.argsort(pixels, kind="stable")
    else:
        by_client = np.argsort(clients, kind="stable")
        order = by_client[np.argsort(pixels[by_client], kind="stable")]
    return order[np.argsort(labels[order], kind="stable")]


@dataclass
class ImageDataset(Dataset):
    """Labelled images; a stratified part of the training images is held out, and training images are augmented.

    Where images belong to clients of the dataset's own, the same part of each client's images is held out, stratified by class.
    """

    crop: int = 0
    """Random crop after padding by this many zero pixels on each side; drawn per training image. 0: no crop."""
    flip: bool = False
    """Random horizontal flip; drawn per training image."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.crop <= 16, f"dataset.crop={self.crop}: a padding of 0 (no crop) to 16 pixels is needed")

    @property
    def content(self) -> dict[str, Any]:
        """The fields that may decide which images are read: those of subclasses. The others say what becomes of the images."""
        common = {field.name for field in dataclasses.fields(ImageDataset)}
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name not in common}

    @property
    def card(self) -> str:
        return f"{self.name}-{digits_of(self.content)}" if self.content else self.name

    @property
    def class_count(self) -> int | None:
        """Number of classes; None: as many as the training labels have."""
        return None

    @abstractmethod
    def read(self, root: Path) -> Arrays:
        """Read the images.

        Raises:
            UserError: a file is missing, truncated, corrupted or of another kind.
        """

    def load(self, root: Path) -> Arrays:
        """The images in canonical order; read once per process."""
        return load_arrays(self.name, json.dumps(self.content), root.resolve())

    def describe(self, root: Path) -> DatasetInfo:
        arrays = self.load(root)
        _, height, width, channels = arrays.train_images.shape
        classes = self.class_count or int(arrays.train_labels.max()) + 1
        train, test = (tuple(np.bincount(labels, minlength=classes).tolist()) for labels in (arrays.train_labels, arrays.test_labels))
        clients: tuple[tuple[int, ...], ...] = ()
        if arrays.train_clients is not None:
            clients = tuple(map(tuple, _cells(arrays.train_labels, arrays.train_clients, classes).tolist()))
        return DatasetInfo(arrays.fingerprint(), (channels, height, width), classes, train, test, clients=clients)

    def sample_counts(self, info: DatasetInfo, split_seed: int = 0) -> SampleCounts:
        if info.clients:
            cells = np.array(info.clients, np.int64)
            cells -= held_of_clients(cells, self.validation, split_seed)
            return SampleCounts(int(cells.sum()), classes=cells.sum(0), users=cells.sum(1))
        return SampleCounts.of_classes(np.array([count - self._held_out(count) for count in info.train_counts], np.int64))

    def sample_owners(self, root: Path, split_seed: int) -> SampleOwners:
        arrays = self.load(root)
        return arrays.owners(self.split(arrays.train_labels, split_seed, arrays.train_clients)[0])

    def _held_out(self, count: int) -> int:
        return round(self.validation * count)

    def split(self, labels: Indices, split_seed: int, clients: Indices | None = None) -> tuple[Indices, Indices]:
        """Split the official training set into training and validation, stratified by class, and by client if there are any.

        Args:
            labels: int64 [N], labels of the official training set in canonical order.
            split_seed: decides which images of each class are held out.
            clients: int64 [N], whose they are.

        Returns:
            Ascending positions of the training and of the validation images; disjoint, covering all N.
        """
        if clients is None:
            held = [
                generator(split_seed, "validation", label).permutation(members)[: self._held_out(len(members))]
                for label in range(int(labels.max(initial=-1)) + 1)
                if len(members := np.flatnonzero(labels == label))
            ]
        else:
            cells = _cells(labels, clients, int(labels.max()) + 1)
            held = members_held(labels, clients, held_of_clients(cells, self.validation, split_seed), split_seed)
        validation = np.sort(np.concatenate(held)) if held else np.empty(0, np.int64)
        return np.setdiff1d(np.arange(len(labels)), validation), validation


def _cells(labels: Indices, clients: Indices, classes: int) -> Indices:
    """Images of each client and class, int64 [clients, classes]."""
    count = int(clients.max()) + 1
    return np.bincount(clients * classes + labels, minlength=count * classes).reshape(count, classes)


def digits_of(values: Mapping[str, Any]) -> str:
    """Twelve hex digits that tell these values apart from others."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


@lru_cache(maxsize=2)
def load_arrays(name: str, content: str, root: Path) -> Arrays:
    """The images of a dataset in their canonical order; the last two datasets are cached.

    Args:
        name: of the dataset. content: JSON of the fields that decide which images are read. root: the data folder.
    """
    dataset = datasets[name](**json.loads(content))
    assert isinstance(dataset, ImageDataset)
    return dataset.read(root).canonical()


def read_npz(path: Path, classes: int, side: int, channels: int) -> Arrays:
    """Read `train_images`, `train_labels`, `test_images`, `test_labels` from an .npz file, checking everything.

    Raises:
        UserError: the file is truncated or corrupted, or holds other arrays than expected.
    """
    import zipfile
    import zlib

    way_out = "replace it with an intact copy, or delete it to have it made again"
    try:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            read = {name: file[name] for name in ("train_images", "train_labels", "test_images", "test_labels")}
    except KeyError as error:
        raise UserError(f"{path} is not a prepared dataset: {error.args[0]}; {way_out}") from error
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, OSError, TypeError) as error:
        raise UserError(f"{path} is truncated or corrupted ({error}); {way_out}") from error
    for part in ("train", "test"):
        images, labels = read[f"{part}_images"], read[f"{part}_labels"]
        sound = (
            images.dtype == np.uint8
            and images.ndim == 4
            and images.shape[1:] == (side, side, channels)
            and labels.shape == images.shape[:1]
            and np.issubdtype(labels.dtype, np.integer)
            and len(labels) > 0
            and 0 <= int(labels.min()) <= int(labels.max()) < classes
        )
        require(
            sound,
            f"{path}: expected {part}_images uint8 [N, {side}, {side}, {channels}] and {part}_labels [N] in 0..{classes - 1}, got "
            f"{images.dtype} {list(images.shape)} and {labels.dtype} {list(labels.shape)}; {way_out}",
        )
    return Arrays(read["train_images"], read["train_labels"].astype(np.int64), read["test_images"], read["test_labels"].astype(np.int64))


def write_npz(
    path: Path, train_images: NDArray[np.uint8], train_labels: NDArray[Any], test_images: NDArray[np.uint8], test_labels: NDArray[Any]
) -> None:
    """Write what :func:`read_npz` reads, whole or not at all; labels below 256.

    Raises:
        OSError: the disk is full or the folder cannot be written.
    """

    def write(file: IO[bytes]) -> None:
        np.savez(
            file,
            train_images=train_images,
            train_labels=train_labels.astype(np.uint8),
            test_images=test_images,
            test_labels=test_labels.astype(np.uint8),
        )

    write_atomically(path, write)


def channel_statistics(images: NDArray[np.uint8]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of each channel over all pixels, on the scale 0..1.

    Sums and sums of squares are integers, so they do not depend on the order of the images.

    Args:
        images: uint8 [N, height, width, channels].
    """
    channels = images.shape[-1]
    total, squares = np.zeros(channels, np.uint64), np.zeros(channels, np.uint64)
    for start in range(0, len(images), 256):
        pixels = images[start : start + 256].reshape(len(images[start : start + 256]), -1).astype(np.uint32)
        total += pixels.sum(0, dtype=np.uint32).reshape(-1, channels).sum(0, dtype=np.uint64)
        squares += (pixels * pixels).sum(0, dtype=np.uint32).reshape(-1, channels).sum(0, dtype=np.uint64)
    count = images.size // channels
    mean = total / count
    return mean / 255, np.sqrt(np.maximum(squares / count - mean**2, 1e-12 * 255**2)) / 255
