"""Arrow and Parquet files, in the layouts and types that Hugging Face's `datasets` writes."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fl_hydra.data.arrow import Arrow
from fl_hydra.data.images import Arrays
from fl_hydra.errors import UserError
from tests.support.data_files import encoded
from tests.support.make import experiment


def feature(images: Any) -> Any:
    """A column as Hugging Face's Image feature is stored: {bytes, path}."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.array([{"bytes": encoded(image), "path": None} for image in images], kind)


def plain_bytes(images: Any) -> Any:
    return pa.array([encoded(image) for image in images], pa.binary())


def lists(images: Any) -> Any:
    """A column as Array3D is stored where `datasets` is not imported."""
    return pa.array(images.tolist(), pa.list_(pa.list_(pa.list_(pa.uint8()))))


def fixed_lists(images: Any) -> Any:
    _, height, width, channels = images.shape
    kind = pa.list_(pa.list_(pa.list_(pa.uint8(), channels), width), height)
    return pa.array(images.tolist(), kind)


def tables(arrays: Arrays, column: Callable[[Any], Any] = feature, **more: Any) -> dict[str, Any]:
    """A table for each split."""
    return {
        "train": pa.table({"image": column(arrays.train_images), "label": pa.array(arrays.train_labels), **more}),
        "test": pa.table({"image": column(arrays.test_images), "label": pa.array(arrays.test_labels)}),
    }


def write_stream(path: Path, table: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)


def write_file(path: Path, table: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


def write_parquet(path: Path, table: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


LAYOUTS: dict[str, tuple[Callable[[Path, Any], None], str]] = {
    "save_to_disk": (write_stream, "{split}/data-{part:05}-of-00002.arrow"),
    "hub": (write_parquet, "data/{split}-{part:05}-of-00002.parquet"),
    "cache": (write_stream, "own-{split}-{part}.arrow"),
    "files": (write_file, "{split}_{part}.arrow"),
}


def write(folder: Path, layout: str, made: dict[str, Any]) -> Path:
    """Two files for each split."""
    writer, name = LAYOUTS[layout]
    for split, table in made.items():
        half = len(table) // 2
        for part, rows in enumerate((table.slice(0, half), table.slice(half))):
            writer(folder / name.format(split=split, part=part), rows)
    return folder


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("column", [feature, plain_bytes, lists, fixed_lists])
def test_each_layout_and_type_of_column_is_read(layout: str, column: Any, arrays: Arrays, root: Path, tmp_path: Path) -> None:
    folder = write(tmp_path / "own", layout, tables(arrays, column))
    if layout == "save_to_disk":
        (folder / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
        write_stream(folder / "train" / "cache-0123456789.arrow", pa.table({"other": [1]}))
    assert Arrow(path=str(folder)).load(root).fingerprint() == arrays.canonical().fingerprint()


def test_columns_and_splits_have_names_of_their_own_and_labels_may_be_names(arrays: Arrays, root: Path, tmp_path: Path) -> None:
    names = np.array(["cat", "dog", "eel"])
    made = {
        split: pa.table({"img": table["image"], "kind": pa.array(names[table["label"].to_numpy()]).dictionary_encode()})
        for split, table in tables(arrays).items()
    }
    folder = write(tmp_path / "own", "hub", {"train": made["train"], "valid": made["test"]})
    dataset = Arrow(path=str(folder), image="img", label="kind", test_split="valid")
    assert dataset.load(root).fingerprint() == arrays.canonical().fingerprint()
    words = ("dataset=arrow", f"dataset.path={folder}", "dataset.image=img", "dataset.label=kind", "dataset.test_split=valid")
    assert experiment(*words, f"data={root}", "model=small", "batch_size=8").dataset_info == dataset.info(root)


def test_a_column_of_clients_is_a_natural_division(arrays: Arrays, root: Path, tmp_path: Path) -> None:
    writers = pa.array([f"w{number % 5}" for number in range(60)])
    folder = write(tmp_path / "own", "hub", tables(arrays, writer=writers))
    words = ("dataset=arrow", f"dataset.path={folder}", "dataset.client=writer", f"data={root}", "model=small", "batch_size=4")
    e = experiment(*words, "algorithm=fedavg", "sharding=natural")
    assert e.K == 5
    assert sum(map(sum, e.dataset_info.clients)) == 60


@pytest.mark.parametrize("form", ["own.parquet", "own.arrow", "saved"])
def test_one_set_has_a_test_set_split_off(form: str, arrays: Arrays, root: Path, tmp_path: Path) -> None:
    path = tmp_path / form
    table = tables(arrays)["train"]
    if form == "saved":
        write_stream(path / "data-00000-of-00001.arrow", table)
    else:
        (write_parquet if path.suffix == ".parquet" else write_stream)(path, table)
    with pytest.raises(UserError, match=r"no file of split train among .*dataset.train_split=, or .*dataset.test=0.2"):
        Arrow(path=str(path)).info(root)
    assert Arrow(path=str(path), test=0.2).info(root).test_counts == (4, 4, 4)
    with pytest.raises(UserError, match=r"has no test set; .*dataset.test=0.2"):
        Arrow(path=str(path)).info(root)


def test_images_are_resized_and_greyed_but_pixels_are_not(arrays: Arrays, root: Path, tmp_path: Path) -> None:
    folder = write(tmp_path / "own", "hub", tables(arrays))
    assert Arrow(path=str(folder), side=6, grey=True).info(root).shape == (1, 6, 6)
    pixels = write(tmp_path / "pixels", "hub", tables(arrays, lists))
    with pytest.raises(UserError, match=r"image holds pixels, which are taken as they are; leave out dataset.side and dataset.grey"):
        Arrow(path=str(pixels), side=6).info(root)


def short(table: Any) -> Any:
    return table.set_column(0, "image", pa.array([image[:5] if n == 7 else image for n, image in enumerate(table["image"].to_pylist())]))


@pytest.mark.parametrize(
    ("column", "change", "says"),
    [
        (feature, lambda t: t.rename_columns(["img", "label"]), "has no column image, but img, label; name it with dataset.image="),
        (feature, lambda t: t.rename_columns(["image", "y"]), "has no column label, but image, y; name it with dataset.label="),
        (feature, lambda t: t.set_column(1, "label", pa.array([None, *range(59)])), "label is missing in 1 rows"),
        (feature, lambda t: t.set_column(1, "label", pa.array(np.zeros(60))), "label is of type double; whole numbers or text"),
        (feature, lambda t: t.set_column(1, "label", pa.array(np.arange(60) % 3 - 1)), "a training image has the label -1"),
        (feature, lambda t: t.set_column(1, "label", pa.array(["a", "b", "c"] * 20)), "numbers in one split and names in another"),
        (lambda i: pa.array([None] * len(i), pa.binary()), lambda t: t, "image in row 0 holds no bytes, but a path perhaps"),
        (lambda i: pa.array([b"text"] * len(i)), lambda t: t, "image in row 0 cannot be read as an image"),
        (lambda i: pa.array(["x.png"] * len(i)), lambda t: t, "is of type string; encoded images, or lists of pixels"),
        (feature, lambda t: t.slice(0, 0), "split train has no rows"),
        (lists, short, "lists of different lengths; images need one size"),
        (lambda i: pa.array((i / 255).tolist()), lambda t: t, "image is double|image is float64; uint8 from 0 to 255"),
    ],
)
def test_a_bad_table_is_one_line(column: Any, change: Callable[[Any], Any], says: str, arrays: Arrays, root: Path, tmp_path: Path) -> None:
    made = tables(arrays, column)
    folder = write(tmp_path / "own", "hub", {**made, "train": change(made["train"])})
    with pytest.raises(UserError) as refused:
        Arrow(path=str(folder)).info(root)
    assert re.search(says, line := str(refused.value)), line
    assert "\n" not in line


def test_damaged_and_missing_files_are_one_line(arrays: Arrays, root: Path, tmp_path: Path) -> None:
    folder = write(tmp_path / "own", "hub", tables(arrays))
    file = next(folder.rglob("train-00000*"))
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(UserError, match=r"train-00000-of-00002.parquet cannot be read"):
        Arrow(path=str(folder)).info(root)
    (tmp_path / "x.arrow").write_bytes(b"no arrow")
    with pytest.raises(UserError, match=r"x.arrow cannot be read"):
        Arrow(path=str(tmp_path / "x.arrow"), test=0.2).info(root)
    with pytest.raises(UserError, match=r"there is no file \*.arrow or \*.parquet"):
        Arrow(path=str(root)).info(root)


def test_without_pyarrow_the_line_says_how_to_get_it(arrays: Arrays, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "own", "hub", tables(arrays))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match="needs pyarrow; install it with: pip install pyarrow"):
        Arrow(path=str(folder)).info(root)
