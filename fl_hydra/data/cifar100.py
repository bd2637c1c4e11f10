"""CIFAR-100 (Krizhevsky 2009): 50,000 training and 10,000 test images of 32x32 pixels, 100 fine labels."""

from __future__ import annotations

import importlib
import io
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np

from fl_hydra.data.dataset import datasets
from fl_hydra.data.images import Arrays, ImageDataset, read_npz
from fl_hydra.errors import UserError
from fl_hydra.files import remove_abandoned, write_atomically
from fl_hydra.processes import machine

ARCHIVE = "cifar-100-python.tar.gz"
ARCHIVE_MD5 = "eb9058c3a382ffc7106e4002c42a8d85"
FOLDER = "cifar-100-python"
SCRATCH = ".cifar100-"
"""Prefix of the folders in which the official files are unpacked."""


@datasets.register
@dataclass
class CIFAR100(ImageDataset):
    """CIFAR-100 from `cifar100.npz` in the data folder; if missing, it is made from the official archive, which may be downloaded."""

    name: str = "cifar100"
    crop: int = 4
    flip: bool = True

    @property
    def class_count(self) -> int:
        return 100

    def source(self, root: Path) -> Path:
        prepared = root / "cifar100.npz"
        remove_abandoned(root, f"{SCRATCH}*")
        if not prepared.exists():
            _prepare(root, prepared)
        return prepared

    def read(self, root: Path) -> Arrays:
        return read_npz(self.source(root), classes=100, side=32, channels=3)


def _prepare(root: Path, prepared: Path) -> None:
    """Write `prepared` from the official files, which torchvision checks by md5 or downloads into a folder that is then removed."""
    by_hand = f"put {ARCHIVE} (md5 {ARCHIVE_MD5}) or a prepared cifar100.npz into {root}, or name another folder with data=FOLDER"
    torchvision_datasets = import_torchvision("torchvision.datasets")
    archive, folder = root / ARCHIVE, root / FOLDER
    if archive.exists() and not torchvision_datasets.utils.check_md5(archive, ARCHIVE_MD5):
        raise UserError(
            f"{archive} is truncated or corrupted (its md5 is not {ARCHIVE_MD5}); delete it to have it downloaded, or {by_hand}"
        )
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=f"{SCRATCH}{machine()}-{os.getpid()}-") as scratch:
        where = scratch
        if folder.is_dir() and not archive.exists():
            where = str(root)  # extracted by hand, or by torchvision elsewhere: its files are checked one by one
        elif archive.exists():
            (Path(scratch) / ARCHIVE).symlink_to(archive.resolve())
        else:
            print(f"CIFAR-100 is not in {root}: downloading it (169 MB)", file=sys.stderr)
        try:
            parts = [torchvision_datasets.CIFAR100(where, train=train, download=where == scratch) for train in (True, False)]
        except Exception as error:
            what = f"the files in {folder} are incomplete or corrupted" if where != scratch else "CIFAR-100 could not be downloaded"
            raise UserError(f"{what} ({_one_line(error)}); {by_hand}") from error
        if not archive.exists() and where == scratch:
            shutil.move(Path(scratch) / ARCHIVE, archive)
        buffer = io.BytesIO()
        np.savez(
            buffer,
            train_images=parts[0].data,
            train_labels=np.asarray(parts[0].targets, np.uint8),
            test_images=parts[1].data,
            test_labels=np.asarray(parts[1].targets, np.uint8),
        )
        write_atomically(prepared, buffer.getvalue())


def _one_line(error: Exception) -> str:
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
