"""MNIST (LeCun et al. 1998) and EMNIST (Cohen et al. 2017): grey images of 28x28 pixels in idx files."""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import shutil
import sys
import tempfile
import zipfile
import zlib
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fl_hydra.data.cifar100 import import_torchvision, one_line
from fl_hydra.data.dataset import datasets, size_and_time
from fl_hydra.data.images import Arrays, ImageDataset
from fl_hydra.errors import UserError, require
from fl_hydra.files import remove_abandoned, write_atomically
from fl_hydra.processes import machine

SIDE = 28


@dataclass
class IdxDataset(ImageDataset):
    """Images in four idx files, each compressed by gzip (`.gz`) or not: training images and labels, test images and labels."""

    title: ClassVar[str]
    """The dataset's name in sentences, and of its folder in the data folder."""

    @property
    @abstractmethod
    def class_count(self) -> int:
        """Number of classes."""

    @property
    @abstractmethod
    def files(self) -> tuple[str, str, str, str]:
        """Names without `.gz`: training images, training labels, test images, test labels."""

    @property
    @abstractmethod
    def by_hand(self) -> str:
        """What can be put into the data folder; the files are named before."""

    @abstractmethod
    def fetch(self, raw: Path) -> None:
        """Download the files into `raw`, or take them from an archive that is in the data folder.

        Raises:
            UserError: no network, or the archive is damaged.
        """

    def source(self, root: Path) -> Path:
        remove_abandoned(root, f"{self._scratch_name}*")
        raw = root / self.title / "raw"
        there = next((folder for folder in (raw, root / self.title, root) if all(_find(folder, name) for name in self.files)), None)
        if there is None:
            self.fetch(raw)
        return there or raw

    def stamp(self, source: Path | None) -> list[Any]:
        assert source is not None
        return [[path.name, *size_and_time(path)] for name in self.files if (path := _find(source, name))]

    def read(self, root: Path) -> Arrays:
        source = self.source(root)
        paths = [path for name in self.files if (path := _find(source, name))]
        return Arrays(*self._part(*paths[:2]), *self._part(*paths[2:]))

    def _part(self, image_file: Path, label_file: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Images and labels of the training or of the test set."""
        images, labels = read_idx(image_file, 3), read_idx(label_file, 1)
        require(
            images.shape[1:] == (SIDE, SIDE),
            f"{image_file}: images of {images.shape[1]}x{images.shape[2]} pixels; {self.title} has {SIDE}x{SIDE}: replace the file",
        )
        require(
            len(images) == len(labels) > 0,
            f"{image_file} holds {len(images)} images and {label_file} {len(labels)} labels; replace the file that is not {self.title}'s",
        )
        numbers = self.numbered(labels)
        wrong = labels[(numbers < 0) | (numbers >= self.class_count)]
        require(
            not len(wrong),
            f"{label_file}: label {wrong[:1].sum()} is none of the {self.class_count} of {self.title}; replace it with an intact copy",
        )
        return self.upright(images)[..., None], numbers

    def numbered(self, labels: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Classes from 0, int64, of the labels of a file."""
        return labels.astype(np.int64)

    def upright(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Images [N, height, width] of those of a file."""
        return images

    @property
    def _scratch_name(self) -> str:
        return f".{self.name}.download-"

    def _scratch(self, root: Path) -> tempfile.TemporaryDirectory[str]:
        root.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(dir=root, prefix=f"{self._scratch_name}{machine()}-{os.getpid()}-")

    def _not_downloaded(self, error: Exception, raw: Path) -> UserError:
        missing = [f"{name}.gz" for name in self.files if not _find(raw, name)]
        return UserError(
            f"{self.title} is not complete in {raw.parents[1]} ({', '.join(missing)}) and could not be downloaded ({one_line(error)}); put "
            f"{self.by_hand} into {raw}, or name another folder with data=FOLDER"
        )


def _find(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / f"{name}.gz", folder / name) if path.is_file()), None)


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """The array of an idx file: two zero bytes, the type (8: uint8), the number of dimensions, their sizes as big-endian int32, the values.

    Raises:
        UserError: it is truncated or corrupted, or holds something else.
    """
    way_out = "replace it with an intact copy, or delete it to have it downloaded"
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} is truncated or corrupted ({one_line(error)}); {way_out}") from error
    start = 4 + 4 * dimensions
    if content[:4] != bytes([0, 0, 8, dimensions]) or len(content) < start:
        raise UserError(f"{path} is no idx file of bytes with {dimensions} dimensions; {way_out}")
    shape = np.frombuffer(content, ">u4", dimensions, offset=4).tolist()
    require(
        len(content) - start == math.prod(shape),
        f"{path} is truncated or corrupted: it holds {len(content) - start} bytes, and its head says {shape}; {way_out}",
    )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


@datasets.register
@dataclass
class MNIST(IdxDataset):
    """60,000 training and 10,000 test images of handwritten digits, without augmentation (as McMahan et al. 2017, for one)."""

    name: str = "mnist"

    title: ClassVar[str] = "MNIST"

    @property
    def class_count(self) -> int:
        return 10

    @property
    def files(self) -> tuple[str, str, str, str]:
        return ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")

    @property
    def by_hand(self) -> str:
        return "them"

    def fetch(self, raw: Path) -> None:
        root = raw.parents[1]
        print(f"MNIST is not in {root}: downloading it (11 MB)", file=sys.stderr)
        with self._scratch(root) as scratch:
            try:
                import_torchvision("torchvision.datasets").MNIST(scratch, download=True)
            except Exception as error:
                raise self._not_downloaded(error, raw) from error
            raw.mkdir(parents=True, exist_ok=True)
            for name in self.files:
                shutil.move(Path(scratch) / "MNIST" / "raw" / f"{name}.gz", raw / f"{name}.gz")


@datasets.register
@dataclass
class EMNIST(IdxDataset):
    """Handwritten letters and digits of NIST's Special Database 19, in the format of MNIST, without augmentation.

    The files hold the images transposed; here they are upright. They do not say who wrote what, so there is no division by writer
    (LEAF's FEMNIST has one).
    """

    name: str = "emnist"
    variant: str = "balanced"
    """Which of its six sets: byclass (62 classes), bymerge (47), balanced (47), letters (26), digits (10) or mnist (10)."""

    title: ClassVar[str] = "EMNIST"
    archive: ClassVar[str] = "gzip.zip"
    archive_md5: ClassVar[str] = "58c8d27c78d21e728a6bc7b3cc06412e"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.variant in CLASSES, f"dataset.variant={self.variant}: choose {', '.join([*CLASSES][:-1])} or {[*CLASSES][-1]}")

    @property
    def card(self) -> str:
        return f"{self.name}-{self.variant}"

    @property
    def class_count(self) -> int:
        return CLASSES[self.variant]

    @property
    def files(self) -> tuple[str, str, str, str]:
        train, test = (f"emnist-{self.variant}-{part}" for part in ("train", "test"))
        return (f"{train}-images-idx3-ubyte", f"{train}-labels-idx1-ubyte", f"{test}-images-idx3-ubyte", f"{test}-labels-idx1-ubyte")

    @property
    def by_hand(self) -> str:
        return f"them, or {self.archive} (md5 {self.archive_md5}) with all of EMNIST,"

    def numbered(self, labels: NDArray[np.uint8]) -> NDArray[np.int64]:
        return labels.astype(np.int64) - (self.variant == "letters")  # which has 1 to 26

    def upright(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return images.transpose(0, 2, 1)

    def fetch(self, raw: Path) -> None:
        root = raw.parents[1]
        archive = next((path for folder in (raw, raw.parent, root) if (path := folder / self.archive).is_file()), raw / self.archive)
        if not archive.exists():
            self._download(raw, archive)
        digest = hashlib.md5()
        with open(archive, "rb") as file:
            while block := file.read(2**20):
                digest.update(block)
        require(
            digest.hexdigest() == self.archive_md5,
            f"{archive} is truncated or corrupted (its md5 is not {self.archive_md5}); delete it to have it downloaded, or put an intact "
            "copy there",
        )
        raw.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(archive) as opened:
            for name in self.files:
                write_atomically(raw / f"{name}.gz", opened.read(f"gzip/{name}.gz"))

    def _download(self, raw: Path, archive: Path) -> None:
        root = raw.parents[1]
        print(f"EMNIST is not in {root}: downloading it (562 MB)", file=sys.stderr)
        with self._scratch(root) as scratch:
            torchvision_datasets = import_torchvision("torchvision.datasets")
            try:
                torchvision_datasets.utils.download_url(torchvision_datasets.EMNIST.url, scratch, self.archive, self.archive_md5)
            except Exception as error:
                raise self._not_downloaded(error, raw) from error
            archive.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(Path(scratch) / self.archive, archive)


CLASSES = {"byclass": 62, "bymerge": 47, "balanced": 47, "letters": 26, "digits": 10, "mnist": 10}
"""Classes of each variant of EMNIST."""
