"""Images from a folder with a folder for each class."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fl_hydra.data.dataset import datasets
from fl_hydra.data.decoding import SUFFIXES, decode_all
from fl_hydra.data.own import DecodedImages, Found, Labelled
from fl_hydra.errors import UserError, require


@datasets.register
@dataclass
class Folder(DecodedImages):
    """Images in `train/CLASS/` and `test/CLASS/` of a folder, or in `CLASS/` where a test set is to be split off.

    Classes are numbered in the order of their names. In the folder of a class, images may lie in folders below it; other files are
    left alone.
    """

    name: str = "folder"

    wanted: ClassVar[str] = "a folder with train/CLASS/*.png and test/CLASS/*.png"

    def files(self, path: Path) -> list[str]:
        return [file for classes in self._listed(path).values() for files in classes.values() for file in files]

    def found(self, path: Path) -> Found:
        parts = self._listed(path)
        (training, *_) = parts.values()
        numbers = {name: label for label, name in enumerate(training)}
        decoded = []
        for classes in parts.values():
            files = [file for members in classes.values() for file in members]
            labels = [numbers[name] for name, members in classes.items() for _ in members]
            decoded.append(Labelled(self._decoded(files), np.array(labels, np.int64)))
        return Found(decoded[0], decoded[1] if len(decoded) > 1 else None)

    def _decoded(self, files: list[str]) -> NDArray[np.uint8]:
        return decode_all(len(files), lambda at: files[at], lambda at: _content(files[at]), self.side, self.grey)

    def _listed(self, path: Path) -> dict[str, dict[str, list[str]]]:
        """The images of each class, by set: `train` and `test`, or one set without a name.

        Raises:
            UserError: a folder is missing or empty.
        """
        where = f"dataset.path={self.path}"
        require(path.is_dir(), f"{where}: this is a file; {self.wanted} is needed")
        sets = [name for name in ("train", "test") if (path / name).is_dir()]
        require(
            sets != ["test"],
            f"{where} has test/ and no train/; {self.wanted} is needed",
        )
        if sets == ["train"] and self.test is None:
            other = next((name for name in ("val", "valid", "validation") if (path / name).is_dir()), None)
            hint = f"rename {other}/ to test/ if it is one" if other else "add test/CLASS/*.png"
            raise UserError(f"{where} has train/ and no test/; {hint}, or split a fraction of each class off with dataset.test=0.2")
        found = {name: _classes(path / name, where) for name in sets or ("",)}
        if len(found) == 2:
            strange = [name for name in found["test"] if name not in found["train"]]
            require(not strange, f"{where}: test/{strange and strange[0]} is a class that train/ lacks; remove it, or add training images")
        return found


def _classes(folder: Path, where: str) -> dict[str, list[str]]:
    names = sorted(each.name for each in folder.iterdir() if each.is_dir() and not each.name.startswith("."))
    require(len(names) > 1, f"{where}: {folder} has {len(names)} folders of classes; at least 2 are needed, with images in each")
    found = {name: sorted(_pictures(folder / name)) for name in names}
    empty = next((name for name, files in found.items() if not files), None)
    require(
        empty is None,
        f"{where}: {folder / str(empty)} holds no image (of {', '.join(sorted(SUFFIXES))}); add some, or remove the folder",
    )
    return found


def _content(file: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}); replace or delete it") from error


def _pictures(folder: Path) -> list[str]:
    return [
        os.path.join(at, name)
        for at, _, names in os.walk(folder)
        for name in names
        if not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES
    ]
