"""Images from one .npz file of numpy."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fl_hydra.data.dataset import datasets
from fl_hydra.data.own import Found, Labelled, OwnImages, as_images, numbered_clients
from fl_hydra.errors import UserError, require


@datasets.register
@dataclass
class Npz(OwnImages):
    """`x_train`, `y_train`, `x_test` and `y_test`, as `np.savez` writes them: images uint8 [N, height, width, channels] (or without
    channels, for one), labels whole numbers from 0. An optional array `client` [N] says whose each training image is, for
    sharding=natural."""

    name: str = "npz"

    wanted: ClassVar[str] = "an .npz file with x_train, y_train, x_test and y_test"

    def files(self, path: Path) -> list[str]:
        require(path.is_file(), f"dataset.path={self.path}: this is a folder; {self.wanted} is needed")
        return [str(path)]

    def found(self, path: Path) -> Found:
        where = f"dataset.path={self.path}"
        try:
            with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
                # np.load returns a single array where the file is an .npy
                arrays: dict[str, NDArray[Any]] = {name: file[name] for name in file.files} if hasattr(file, "files") else {}
        except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, OSError, AttributeError, TypeError) as error:
            raise UserError(f"{where} cannot be read ({' '.join(str(error).split())}); {self.wanted} is needed") from error
        test = {"x_test", "y_test"} & arrays.keys()
        missing = [name for name in ("x_train", "y_train", *(("x_test", "y_test") if test else ())) if name not in arrays]
        require(
            not missing,
            f"{where} lacks {' and '.join(missing)}; {self.wanted} is needed, and it has {', '.join(sorted(arrays)) or 'nothing'}",
        )
        train, *tests = (_part(arrays, part, where) for part in ("train", *(("test",) if test else ())))
        clients = numbered_clients(arrays["client"], len(train.labels), f"{where}: client") if "client" in arrays else None
        return Found(train, tests[0] if tests else None, clients)


def _part(arrays: dict[str, NDArray[Any]], part: str, where: str) -> Labelled:
    images, labels = as_images(arrays[f"x_{part}"], f"{where}: x_{part}"), arrays[f"y_{part}"]
    require(
        labels.shape == images.shape[:1] and labels.dtype.kind in "iu",
        f"{where}: y_{part} has shape {list(labels.shape)} and type {labels.dtype}; a whole number for each of the {len(images)} images is "
        "needed",
    )
    return Labelled(images, labels.astype(np.int64))
