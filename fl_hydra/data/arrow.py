"""Images from Arrow or Parquet files, as Hugging Face's `datasets` saves them; read with pyarrow alone."""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fl_hydra.arrays import Indices
from fl_hydra.data.dataset import datasets
from fl_hydra.data.decoding import decode_all
from fl_hydra.data.own import DecodedImages, Found, Labelled, as_images, numbered_clients
from fl_hydra.errors import UserError, require


@datasets.register
@dataclass
class Arrow(DecodedImages):
    """A folder that `save_to_disk` has written, a folder of .parquet or .arrow files, or one such file.

    A file belongs to the split that its name or folder names, as `data/train-00000-of-00001.parquet` does; where none names one, all
    are one set, from which a test set is split off. Images are encoded (bytes, or Hugging Face's image feature) or nested lists of
    pixels, uint8. Labels are whole numbers from 0, or names, which are numbered in alphabetical order.
    """

    name: str = "arrow"
    image: str = "image"
    """Column of the images."""
    label: str = "label"
    """Column of the labels."""
    client: str | None = None
    """Column that says whose each image is, for sharding=natural; null: no one's."""
    train_split: str = "train"
    """Split of the training images."""
    test_split: str = "test"
    """Split of the test images, where the test set is a split."""

    wanted: ClassVar[str] = "a folder or file of Arrow or Parquet"

    def files(self, path: Path) -> list[str]:
        # `datasets` keeps what it has computed from a dataset in cache-*.arrow beside it.
        found = [path] if path.is_file() else sorted(each for each in path.rglob("*") if not each.name.startswith(("cache-", ".")))
        found = [each for each in found if each.suffix in (".arrow", ".parquet") and each.is_file()]
        require(bool(found), f"dataset.path={self.path}: there is no file *.arrow or *.parquet; {self.wanted} is needed")
        return [str(each) for each in found]

    def found(self, path: Path) -> Found:
        where = f"dataset.path={self.path}"
        parts = self._parts(path)
        columns = [self.image, self.label, *([self.client] if self.client is not None else [])]
        tables = [_table(files, columns if split == self.train_split else columns[:2], where) for split, files in parts.items()]
        empty = next((split for split, table in zip(parts, tables, strict=True) if not len(table)), None)
        require(empty is None, f"{where}: split {empty} has no rows; {self.wanted} with images is needed")
        labels = _numbered([_values(table, self.label, where) for table in tables], f"{where}: {self.label}")
        train, *test = (
            Labelled(self._images(table.column(self.image), f"{where}, {split}"), own)
            for split, table, own in zip(parts, tables, labels, strict=True)
        )
        clients = None
        if self.client is not None:
            clients = numbered_clients(_values(tables[0], self.client, where), len(train.labels), f"{where}: {self.client}")
        return Found(train, test[0] if test else None, clients)

    def _parts(self, path: Path) -> dict[str, list[Path]]:
        """Files of the training split, then of the test split if there is one."""
        above = path if path.is_dir() else path.parent
        words = {file: re.split(r"[^0-9A-Za-z]+", str(file.relative_to(above))) for file in map(Path, self.files(path))}
        train, test = ([file for file in words if split in words[file]] for split in (self.train_split, self.test_split))
        if self.test is not None and not test:
            return {self.train_split: train or list(words)}
        listed = ", ".join(file.name for file in list(words)[:4]) + (", ..." if len(words) > 4 else "")
        for field, split, files in (("train_split", self.train_split, train), ("test_split", self.test_split, test)):
            require(
                bool(files),
                f"dataset.path={self.path}: no file of split {split} among {listed}; name it with dataset.{field}=, or have a test set "
                "split off with dataset.test=0.2",
            )
        return {self.train_split: train, self.test_split: test}

    def _images(self, column: Any, where: str) -> NDArray[np.uint8]:
        """Images uint8 [N, height, width, channels] of a column."""
        types = _pyarrow().types
        kind = column.type
        place = f"{where}: {self.image}"
        if types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            column = _flattened(column)
            kind = column.type
        if types.is_binary(kind) or types.is_large_binary(kind):
            return decode_all(len(column), lambda at: f"{place} in row {at}", lambda at: _content(column, at, place), self.side, self.grey)
        pixels = as_images(_nested(column, place), place)
        require(
            self.side is None and not self.grey,
            f"{place} holds pixels, which are taken as they are; leave out dataset.side and dataset.grey",
        )
        return pixels


def _pyarrow(part: str = "pyarrow") -> ModuleType:
    try:
        return importlib.import_module(part)
    except ImportError as error:
        raise UserError("dataset=arrow: needs pyarrow; install it with: pip install pyarrow") from error


def _table(files: list[Path], columns: list[str], where: str) -> Any:
    """Some columns of all rows of some files, as a pyarrow.Table."""
    pa = _pyarrow()
    tables = []
    for file in files:
        try:
            if file.suffix == ".parquet":
                opened = _pyarrow("pyarrow.parquet").ParquetFile(file)
                names = opened.schema_arrow.names
                tables.append(opened.read(columns=[name for name in columns if name in names]))
            else:
                with pa.memory_map(str(file)) as source:
                    try:
                        table = pa.ipc.open_stream(source).read_all()
                    except pa.ArrowInvalid:
                        source.seek(0)
                        table = pa.ipc.open_file(source).read_all()
                names = table.schema.names
                tables.append(table.select([name for name in columns if name in names]))
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{file} cannot be read ({' '.join(str(error).split())}); replace it with an intact copy") from error
        for field, name in zip(("image", "label", "client"), columns, strict=False):
            require(name in names, f"{file} has no column {name}, but {', '.join(names)}; name it with dataset.{field}=")
    try:
        return pa.concat_tables(tables)
    except pa.ArrowException as error:
        raise UserError(f"{where}: the files have columns of different types ({' '.join(str(error).split())}); write them alike") from error


def _values(table: Any, name: str, where: str) -> NDArray[Any]:
    """A column of numbers or text, as an array."""
    column, types = table.column(name), _pyarrow().types
    require(column.null_count == 0, f"{where}: {name} is missing in {column.null_count} rows; remove them")
    if types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if types.is_string(column.type) or types.is_large_string(column.type):
        return np.array(column.to_pylist(), str)
    require(types.is_integer(column.type), f"{where}: {name} is of type {column.type}; whole numbers or text are needed")
    found: NDArray[Any] = column.to_numpy()
    return found


def _numbered(labels: list[NDArray[Any]], where: str) -> list[Indices]:
    """Labels of each set as numbers; names are numbered in alphabetical order."""
    if all(each.dtype.kind in "iu" for each in labels):
        return [each.astype(np.int64) for each in labels]
    require(all(each.dtype.kind == "U" for each in labels), f"{where}: holds numbers in one split and names in another; write them alike")
    names = np.unique(labels[0])
    strange = np.setdiff1d(np.concatenate(labels), names)
    require(not len(strange), f"{where}: no training image has the label {strange[:1].tolist()}, which a test image has; remove it")
    return [np.searchsorted(names, each).astype(np.int64) for each in labels]


def _flattened(column: Any) -> Any:
    """The bytes of Hugging Face's image feature, {bytes, path}."""
    pa = _pyarrow()
    return pa.chunked_array([chunk.field("bytes") for chunk in column.chunks], column.type.field("bytes").type)


def _content(column: Any, row: int, where: str) -> bytes:
    found: bytes | None = column[row].as_py()
    if found is None:
        raise UserError(f"{where} in row {row} holds no bytes, but a path perhaps; save the dataset with its images in it")
    return found


def _nested(column: Any, where: str) -> NDArray[Any]:
    """Lists of lists (of lists) of numbers as one array [N, ...].

    Raises:
        UserError: they have different lengths, or something is missing.
    """
    pa = _pyarrow()
    compute, types = _pyarrow("pyarrow.compute"), pa.types
    pieces = []
    for chunk in column.chunks:
        values = chunk.storage if isinstance(chunk, pa.ExtensionArray) else chunk
        shape = [len(values)]
        while types.is_list(values.type) or types.is_large_list(values.type) or types.is_fixed_size_list(values.type):
            lengths = compute.unique(compute.list_value_length(values)).to_pylist()
            require(len(lengths) < 2 and None not in lengths, f"{where} holds lists of different lengths; images need one size")
            shape.append(lengths[0] if lengths else 0)
            values = values.flatten()
        require(
            len(shape) > 1 and types.is_primitive(values.type) and values.null_count == 0,
            f"{where} is of type {column.type}; encoded images, or lists of pixels, are needed",
        )
        pieces.append(values.to_numpy(zero_copy_only=False).reshape(shape))
    shapes = {piece.shape[1:] for piece in pieces if len(piece)}
    require(len(shapes) == 1, f"{where} holds images of {len(shapes)} sizes; one is needed")
    return np.concatenate([piece for piece in pieces if len(piece)])
