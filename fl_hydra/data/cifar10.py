"""CIFAR-10 (Krizhevsky 2009): 50,000 training and 10,000 test images of 32x32 pixels, 10 labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fl_hydra.data.cifar100 import CIFAR
from fl_hydra.data.dataset import datasets


@datasets.register
@dataclass
class CIFAR10(CIFAR):
    """CIFAR-10 from `cifar10.npz` in the data folder; if missing, it is made from the official archive, which may be downloaded."""

    name: str = "cifar10"

    title: ClassVar[str] = "CIFAR-10"
    archive: ClassVar[str] = "cifar-10-python.tar.gz"
    archive_md5: ClassVar[str] = "c58f30108f718f92721af3b95e74349a"
    folder: ClassVar[str] = "cifar-10-batches-py"
    megabytes: ClassVar[int] = 170
    classes: ClassVar[int] = 10
