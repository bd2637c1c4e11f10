"""Images of the user's own, wherever they come from: labels are checked, a test set is split off, what was decoded is kept."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
import zlib
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fl_hydra.arrays import Indices
from fl_hydra.data.dataset import DatasetInfo
from fl_hydra.data.images import Arrays, ImageDataset, canonical_order, digits_of
from fl_hydra.data.sample_owners import SampleCounts
from fl_hydra.errors import require
from fl_hydra.files import remove_abandoned, write_atomically
from fl_hydra.randomness import generator


class Labelled(NamedTuple):
    """Images uint8 [N, height, width, channels] with their labels, int64 [N]."""

    images: NDArray[np.uint8]
    labels: Indices


@dataclass(frozen=True)
class Found:
    """What the user's files hold.

    train: training images. test: None if the files have no test set. clients: int64 [N], whose each training image is; None if it is not
    said.
    """

    train: Labelled
    test: Labelled | None = None
    clients: Indices | None = None

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What there is of it, by name."""
        named: dict[str, NDArray[Any]] = {"images": self.train.images, "labels": self.train.labels}
        if self.test is not None:
            named |= {"test_images": self.test.images, "test_labels": self.test.labels}
        return named if self.clients is None else {**named, "clients": self.clients}

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[Any]]) -> Found:
        """From what :meth:`arrays` has made.

        Raises:
            KeyError: one is missing.
        """
        test = Labelled(arrays["test_images"], arrays["test_labels"]) if "test_images" in arrays else None
        return cls(Labelled(arrays["images"], arrays["labels"]), test, arrays.get("clients"))


@dataclass
class OwnImages(ImageDataset):
    """Images from a path. The path is not part of a run's name, but a fingerprint of the images is."""

    path: str | None = None
    """Where the images are."""
    test: float | None = None
    """Fraction of each class that becomes the test set, where the data have none; null: the data have one."""

    wanted: ClassVar[str]
    """What the path should lead to, in messages."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.test is None or 0 < self.test < 1,
            f"dataset.test={self.test}: a fraction above 0 and below 1 is needed; leave it out if the data have a test set",
        )

    def identity(self) -> dict[str, Any]:
        return {key: value for key, value in super().identity().items() if key not in self.content}  # the fingerprint names what was read

    @abstractmethod
    def files(self, path: Path) -> list[str]:
        """Paths of the files that are read, in an order that does not change.

        Raises:
            UserError: there are none, or not where they should be.
        """

    @abstractmethod
    def found(self, path: Path) -> Found:
        """What the files hold.

        Raises:
            UserError: one is missing, unreadable or of another kind.
        """

    @property
    def card(self) -> str:
        return f"{self.name}-{self._key()}"

    def _key(self, *but: str) -> str:
        """Digits that tell apart what is kept of the user's data; `but`: fields that do not matter."""
        values = {**self.content, "path": str(Path(self.path or "").expanduser().resolve())}
        return digits_of({name: value for name, value in values.items() if name not in but})

    def source(self, root: Path) -> Path:
        require(bool(self.path), f"dataset={self.name}: {self.wanted} is needed; name it with dataset.path=PATH")
        path = Path(str(self.path)).expanduser()
        require(path.exists(), f"dataset.path={self.path}: there is no such file or folder; {self.wanted} is needed")
        return path

    def stamp(self, source: Path | None) -> list[Any]:
        assert source is not None
        digest, start = hashlib.sha256(), len(str(source))
        for file in self.files(source):  # perhaps a hundred thousand
            status = os.stat(file)
            digest.update(f"{file[start:]}\0{status.st_size}\0{status.st_mtime_ns}\0".encode(errors="surrogateescape"))
        return [digest.hexdigest()]

    def read(self, root: Path) -> Arrays:
        found = self.kept(root, self.source(root))
        where = f"dataset.path={self.path}"
        train, test = found.train, found.test
        _check_labels(train.labels, None if test is None else test.labels, where)
        if test is None:
            return self._with_test(train, found.clients, where)
        require(self.test is None, f"dataset.test={self.test}: {where} has a test set of its own; leave dataset.test out")
        require(
            train.images.shape[1:] == test.images.shape[1:],
            f"{where}: training images have shape {_sizes(train.images)} and test images {_sizes(test.images)}; one size is needed",
        )
        return Arrays(*train, *test, found.clients)

    def kept(self, root: Path, path: Path) -> Found:
        """What the files hold, from what is kept of it if that is up to date."""
        return self.found(path)

    def _with_test(self, found: Labelled, clients: Indices | None, where: str) -> Arrays:
        """With a test set split off: always the same images, whatever order the files are in."""
        require(
            self.test is not None,
            f"{where} has no test set; add one, or have a fraction of each class split off with dataset.test=0.2",
        )
        order = canonical_order(found.images, found.labels, clients)
        chosen = []
        for label in range(int(found.labels.max()) + 1):
            members = order[found.labels[order] == label]
            count = round(float(self.test or 0) * len(members))
            require(
                0 < count < len(members),
                f"dataset.test={self.test}: of the {len(members)} images of class {label}, {count} would be for the test set; at least one "
                "has to be, and one to be left: choose another fraction, or add images",
            )
            chosen.append(generator(0, "own-test", label).permutation(members)[:count])
        test = np.concatenate(chosen)
        train = np.setdiff1d(np.arange(len(found.labels)), test)
        left = None if clients is None else np.unique(clients[train], return_inverse=True)[1]
        return Arrays(found.images[train], found.labels[train], found.images[test], found.labels[test], left)

    def sample_counts(self, info: DatasetInfo, split_seed: int = 0) -> SampleCounts:
        counts = super().sample_counts(info, split_seed)
        require(
            not self.validation or not info.clients or counts.total < sum(info.train_counts),
            f"dataset.validation={self.validation}: no client has images enough that one would be held out; choose a larger fraction, or 0 "
            "for no validation",
        )
        few = min(info.train_counts)
        held = self._held_out(few)
        require(
            not self.validation or bool(info.clients) or 0 < held < few,
            f"dataset.validation={self.validation}: of the {few} training images of class {info.train_counts.index(few)}, {held} would be "
            "held out; at least one has to be, and one to be left: choose another fraction, or 0 for no validation",
        )
        return counts


@dataclass
class DecodedImages(OwnImages):
    """Images that have to be decoded, which is done once: they are kept in the data folder, for as long as their files do not change."""

    side: int | None = None
    """Height and width in pixels to which images are resized, whatever their proportions; null: all have one size already."""
    grey: bool = False
    """Whether images have one channel, grey, instead of three."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.side is None or 1 <= self.side <= 4096, f"dataset.side={self.side}: 1 to 4,096 pixels are possible")

    def kept(self, root: Path, path: Path) -> Found:
        stamp = json.dumps([self.version, *self.stamp(path)])
        file = root / f".{self.name}-{self._key('test')}.npz"
        remove_abandoned(root)
        try:
            with open(file, "rb") as opened, np.load(opened, allow_pickle=False) as arrays:
                if str(arrays["of"]) == stamp:
                    return Found.of(arrays)
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error):
            pass  # there is none, or not a sound one of ours: the images are decoded again
        found = self.found(path)
        try:
            root.mkdir(parents=True, exist_ok=True)
            write_atomically(file, partial(_save, {"of": np.array(stamp), **found.arrays()}))
        except OSError:
            pass  # a read-only data folder or a full disk only costs decoding them again next time
        return found


def _save(arrays: dict[str, Any], file: IO[bytes]) -> None:
    np.savez(file, **arrays)


def numbered_clients(values: NDArray[Any], count: int, where: str) -> Indices:
    """Clients numbered from 0 in the order of their values, int64 [N].

    Args:
        values: whole numbers or text. count: of training images. where: they are from, in messages.

    Raises:
        UserError: they are of another type, or not one for each image.
    """
    require(
        values.shape == (count,) and values.dtype.kind in "iuUS",
        f"{where} has shape {list(values.shape)} and type {values.dtype}; a whole number or a name for each of the {count} training images "
        "is needed",
    )
    return np.unique(values, return_inverse=True)[1].astype(np.int64)


def _check_labels(training: Indices, test: Indices | None, where: str) -> None:
    """Refuse labels that are not 0, 1, ..., n - 1, each of which some training image has.

    Raises:
        UserError: naming the first that is wrong.
    """
    for part, labels in (("training", training), ("test", test)):
        require(
            labels is None or len(labels) > 0, f"{where} has no {part} images; add some, or split test images off with dataset.test=0.2"
        )
        least = 0 if labels is None else int(labels.min())
        require(least >= 0, f"{where}: a {part} image has the label {least}; labels from 0 are needed, so leave out images without one")
    classes = np.unique(training)
    missing = next((label for label, there in enumerate(classes.tolist()) if label != there), None)
    require(
        missing is None,
        f"{where}: training labels go from {classes[0]} to {classes[-1]}, but none is {missing}; number the {len(classes)} classes from 0, "
        "as np.unique(labels, return_inverse=True)[1] does",
    )
    require(len(classes) > 1, f"{where}: all training images have the same label; at least 2 classes are needed")
    most = 0 if test is None else int(test.max())
    require(most < len(classes), f"{where}: a test image has the label {most}, and training images 0 to {len(classes) - 1}; remove it")


def as_images(images: NDArray[Any], where: str) -> NDArray[np.uint8]:
    """Pixels as images uint8 [N, height, width, channels].

    Args:
        images: [N, height, width] or [N, height, width, channels]. where: they are from, in messages.

    Raises:
        UserError: they have another type or shape.
    """
    require(
        images.dtype == np.uint8,
        f"{where} is {images.dtype}; uint8 from 0 to 255 is needed, which is normalised here: np.rint(255 * x).astype(np.uint8) makes it "
        "of values from 0 to 1",
    )
    images = images[..., None] if images.ndim == 3 else images
    require(
        images.ndim == 4 and images.size > 0,
        f"{where} has shape {list(images.shape)}; [N, height, width, channels], or [N, height, width] for one channel, is needed",
    )
    require(
        not images.shape[1] <= 4 < images.shape[3],
        f"{where} has shape {list(images.shape)}, with channels first; they are needed last: np.transpose(x, (0, 2, 3, 1))",
    )
    return images


def _sizes(images: NDArray[np.uint8]) -> str:
    return "x".join(map(str, images.shape[1:]))
