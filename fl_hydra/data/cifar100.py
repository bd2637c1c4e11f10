"""CIFAR-100 (Krizhevsky 2009): 50,000 training and 10,000 test images of 32x32 pixels, 100 fine labels."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import numpy as np

from fl_hydra.data.dataset import datasets
from fl_hydra.data.images import Arrays, ImageDataset, read_npz, write_npz
from fl_hydra.errors import UserError
from fl_hydra.files import remove_abandoned
from fl_hydra.processes import machine


@dataclass
class CIFAR(ImageDataset):
    """CIFAR from `<name>.npz` in the data folder; if missing, it is made from the official archive, which may be downloaded."""

    crop: int = 4
    flip: bool = True

    title: ClassVar[str]
    """The dataset's name in sentences; without its hyphen, that of torchvision's class."""
    archive: ClassVar[str]
    archive_md5: ClassVar[str]
    folder: ClassVar[str]
    """In the archive."""
    megabytes: ClassVar[int]
    classes: ClassVar[int]

    @property
    def class_count(self) -> int:
        return self.classes

    @property
    def scratch(self) -> str:
        """Prefix of the folders in which the official files are unpacked."""
        return f".{self.name}-"

    def source(self, root: Path) -> Path:
        prepared = root / f"{self.name}.npz"
        remove_abandoned(root, f"{self.scratch}*")
        if not prepared.exists():
            self._prepare(root, prepared)
        return prepared

    def read(self, root: Path) -> Arrays:
        return read_npz(self.source(root), classes=self.classes, side=32, channels=3)

    def _prepare(self, root: Path, prepared: Path) -> None:
        """Write `prepared` from the official files, which torchvision checks by md5 or downloads into a folder that is then removed."""
        files = f"{self.archive} (md5 {self.archive_md5}) or a prepared {prepared.name}"
        by_hand = f"put {files} into {root}, or name another folder with data=FOLDER"
        torchvision_datasets = import_torchvision("torchvision.datasets")
        archive, folder = root / self.archive, root / self.folder
        if archive.exists() and not torchvision_datasets.utils.check_md5(archive, self.archive_md5):
            raise UserError(
                f"{archive} is truncated or corrupted (its md5 is not {self.archive_md5}); delete it to have it downloaded, or {by_hand}"
            )
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix=f"{self.scratch}{machine()}-{os.getpid()}-") as scratch:
            where = scratch
            if folder.is_dir() and not archive.exists():
                where = str(root)  # extracted by hand, or by torchvision elsewhere: its files are checked one by one
            elif archive.exists():
                (Path(scratch) / self.archive).symlink_to(archive.resolve())
            else:
                print(f"{self.title} is not in {root}: downloading it ({self.megabytes} MB)", file=sys.stderr)
            official = getattr(torchvision_datasets, self.title.replace("-", ""))
            try:
                parts = [official(where, train=train, download=where == scratch) for train in (True, False)]
            except Exception as error:
                what = f"the files in {folder} are incomplete or corrupted" if where != scratch else f"{self.title} could not be downloaded"
                raise UserError(f"{what} ({one_line(error)}); {by_hand}") from error
            if not archive.exists() and where == scratch:
                shutil.move(Path(scratch) / self.archive, archive)
            write_npz(prepared, parts[0].data, np.asarray(parts[0].targets), parts[1].data, np.asarray(parts[1].targets))


@datasets.register
@dataclass
class CIFAR100(CIFAR):
    """CIFAR-100 from `cifar100.npz` in the data folder; if missing, it is made from the official archive, which may be downloaded."""

    name: str = "cifar100"

    title: ClassVar[str] = "CIFAR-100"
    archive: ClassVar[str] = "cifar-100-python.tar.gz"
    archive_md5: ClassVar[str] = "eb9058c3a382ffc7106e4002c42a8d85"
    folder: ClassVar[str] = "cifar-100-python"
    megabytes: ClassVar[int] = 169
    classes: ClassVar[int] = 100


def one_line(error: Exception) -> str:
    """What an error says, without line breaks."""
    return " ".join(str(error).split()) or type(error).__name__


def import_torchvision(name: str) -> ModuleType:
    """Import `torchvision` or a part of it, even if its compiled operators do not match the installed torch.

    A torchvision built for CUDA cannot register its operators beside a CPU-only torch, and then fails on import. Only its
    Python code is used here, so the two operators that the import needs are declared, without an implementation.
    """
    try:
        return importlib.import_module(name)
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    import torch

    for module in [module for module in sys.modules if module.split(".")[0] == "torchvision"]:
        del sys.modules[module]
    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
    _kept_alive.append(library)
    return importlib.import_module(name)


_kept_alive: list[object] = []
