"""Tiny-ImageNet (Stanford CS231n): 200 classes of ImageNet with 500 training and 50 validation images each, of 64x64 pixels."""

from __future__ import annotations

import sys
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fl_hydra.data.cifar100 import one_line
from fl_hydra.data.dataset import datasets
from fl_hydra.data.decoding import decode_all
from fl_hydra.data.images import Arrays, ImageDataset, read_npz, write_npz
from fl_hydra.errors import UserError, require

FOLDER = "tiny-imagenet-200"
SIDE = 64

Read = Callable[[str], bytes]
"""The content of a file of the dataset, by its path in it."""


@datasets.register
@dataclass
class TinyImageNet(ImageDataset):
    """Tiny-ImageNet from `tiny_imagenet.npz` in the data folder, which is made once from `tiny-imagenet-200.zip` or its folder there.

    The labels of the official test images were never published, so the test set is the official validation set, as usual. Our
    validation set is taken from the training images. Classes are numbered in the order of their WordNet ids.
    """

    name: str = "tiny_imagenet"
    crop: int = 4
    flip: bool = True

    train_images: ClassVar[int] = 500
    """Of each class."""
    test_images: ClassVar[int] = 50
    """Of each class."""

    @property
    def class_count(self) -> int:
        return 200

    def source(self, root: Path) -> Path:
        prepared = root / "tiny_imagenet.npz"
        if not prepared.exists():
            self._prepare(root, prepared)
        return prepared

    def read(self, root: Path) -> Arrays:
        return read_npz(self.source(root), self.class_count, SIDE, 3)

    def _prepare(self, root: Path, prepared: Path) -> None:
        folder, archive = root / FOLDER, root / f"{FOLDER}.zip"
        with ExitStack() as stack:
            if folder.is_dir():
                where, read = folder, _from_folder(folder)
            elif archive.is_file():
                try:
                    opened = stack.enter_context(zipfile.ZipFile(archive))
                except (zipfile.BadZipFile, OSError) as error:
                    raise UserError(f"{archive} is truncated or corrupted ({one_line(error)}); replace it with an intact copy") from error
                where, read = archive, _from_archive(opened)
            else:
                raise UserError(
                    f"Tiny-ImageNet is not in {root}, and cannot be downloaded from here; put {archive.name} (from "
                    f"http://cs231n.stanford.edu/{archive.name}), or its folder {FOLDER} with train/ and val/, into {root}, or name "
                    "another folder with data=FOLDER"
                )
            print(f"Tiny-ImageNet: decoding {where}, once", file=sys.stderr)
            train, test = self._listed(where, read)
            of_train, of_test = (_decoded(part, where, read) for part in (train, test))
        write_npz(prepared, *of_train, *of_test)

    def _listed(self, where: Path, read: Read) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
        """Training and test images: the path of each, and its class.

        Raises:
            UserError: the list of classes, or that of the test images, is missing or not Tiny-ImageNet's.
        """
        ids = sorted(_lines(where, read, "wnids.txt"))
        require(
            len(ids) == len(set(ids)) == self.class_count,
            f"{where}: wnids.txt names {len(set(ids))} classes, and Tiny-ImageNet has {self.class_count}; replace it with an intact copy",
        )
        train = [(f"train/{each}/images/{each}_{at}.JPEG", label) for label, each in enumerate(ids) for at in range(self.train_images)]
        numbers = {each: label for label, each in enumerate(ids)}
        rows = [line.split() for line in _lines(where, read, "val/val_annotations.txt")]
        sound = all(len(row) >= 2 and row[1] in numbers for row in rows)
        counts = Counter(row[1] for row in rows) if sound else Counter()
        require(
            sound and len(counts) == len(ids) and set(counts.values()) == {self.test_images},
            f"{where}: val/val_annotations.txt should name {self.test_images} images of each of the {len(ids)} classes in wnids.txt; "
            "replace it with an intact copy",
        )
        return train, [(f"val/images/{row[0]}", numbers[row[1]]) for row in rows]


def _decoded(part: list[tuple[str, int]], where: Path, read: Read) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images and labels of some files. A few of them are grey, which have three equal channels here."""
    resize = "for images of other sizes, choose dataset=folder"
    images = decode_all(len(part), lambda at: f"{where}: {part[at][0]}", lambda at: _content(where, read, part[at][0]), resize=resize)
    height, width = images.shape[1:3]
    require(
        (height, width) == (SIDE, SIDE),
        f"{where}: images have {height}x{width} pixels, and those of Tiny-ImageNet {SIDE}x{SIDE}; {resize}",
    )
    return images, np.array([label for _, label in part], np.int64)


def _lines(where: Path, read: Read, name: str) -> list[str]:
    return _content(where, read, name).decode(errors="replace").splitlines()


def _content(where: Path, read: Read, name: str) -> bytes:
    try:
        return read(name)
    except (FileNotFoundError, KeyError) as error:
        raise UserError(f"{where} is not complete: {name} is missing; unpack or copy it again") from error
    except (OSError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{where}: {name} cannot be read ({one_line(error)}); unpack or copy it again") from error


def _from_folder(folder: Path) -> Read:
    return lambda name: (folder / name).read_bytes()


def _from_archive(opened: zipfile.ZipFile) -> Read:
    return lambda name: opened.read(f"{FOLDER}/{name}")
