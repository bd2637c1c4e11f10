"""Tiny-ImageNet's folder and archive."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fl_hydra.data.tiny_imagenet import FOLDER, TinyImageNet
from fl_hydra.errors import UserError
from tests.support.data_files import encoded

IDS = [f"n{number:08d}" for number in np.random.default_rng(0).permutation(200) * 37 + 1_440_000]
"""In the order of wnids.txt, which is not sorted."""


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the archive has it, with one training and one test image of each class; grey for the first class in order."""
    root = tmp_path_factory.mktemp("tiny")
    folder = root / FOLDER
    (folder / "val" / "images").mkdir(parents=True)
    (folder / "wnids.txt").write_text("".join(f"{each}\n" for each in IDS))
    rows = []
    for number, each in enumerate(IDS):
        images = folder / "train" / each / "images"
        images.mkdir(parents=True)
        (folder / "train" / each / f"{each}_boxes.txt").write_text("")
        grey = each == min(IDS)
        for path, bright in ((images / f"{each}_0.JPEG", number), (folder / "val" / "images" / f"val_{number}.JPEG", number + 20)):
            path.write_bytes(encoded(np.full((64, 64, 1 if grey else 3), bright, np.uint8), "JPEG"))
        rows.append(f"val_{number}.JPEG\t{each}\t0\t32\t44\t62\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(rows))
    with zipfile.ZipFile(root / f"{FOLDER}.zip", "w") as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(root))
    return root


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TinyImageNet, "train_images", 1)
    monkeypatch.setattr(TinyImageNet, "test_images", 1)


@pytest.mark.parametrize("form", [FOLDER, f"{FOLDER}.zip"])
def test_classes_are_in_the_order_of_their_ids_and_val_is_the_test_set(form: str, official: Path, tmp_path: Path) -> None:
    (tmp_path / form).symlink_to(official / form)
    arrays = TinyImageNet().load(tmp_path)
    bright = [IDS.index(each) for each in sorted(IDS)]
    for images, labels, more in ((arrays.train_images, arrays.train_labels, 0), (arrays.test_images, arrays.test_labels, 20)):
        assert images.shape == (200, 64, 64, 3)
        assert labels.tolist() == list(range(200))
        expected = np.array(bright)[:, None, None, None] + more
        assert np.abs(images.astype(int) - expected).max() <= 1, "JPEG keeps a constant image to one step"
    info = TinyImageNet().info(tmp_path)
    assert (info.shape, info.classes) == ((3, 64, 64), 200)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([".tiny_imagenet.card.json", form, "tiny_imagenet.npz"])


def test_it_is_prepared_once(official: Path, tmp_path: Path) -> None:
    (tmp_path / FOLDER).symlink_to(official / FOLDER)
    first = TinyImageNet().info(tmp_path)
    (tmp_path / FOLDER).unlink()
    (tmp_path / ".tiny_imagenet.card.json").unlink()
    assert TinyImageNet(validation=0.2).info(tmp_path) == first


def test_without_files_the_line_says_what_to_put_where(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"put tiny-imagenet-200.zip .*or its folder .*data=FOLDER") as refused:
        TinyImageNet().info(tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: (folder / "wnids.txt").unlink(), "not complete: wnids.txt is missing"),
        (lambda folder: (folder / "wnids.txt").write_text("n1\nn2\n"), "wnids.txt names 2 classes, and Tiny-ImageNet has 200"),
        (lambda folder: (folder / "val" / "val_annotations.txt").write_text("val_0.JPEG"), "should name 1 images of each of the 200"),
        (lambda folder: (folder / "val" / "images" / "val_7.JPEG").unlink(), "val/images/val_7.JPEG is missing"),
        (lambda folder: next((folder / "train").glob("*7/images/*")).write_bytes(b"text"), "7_0.JPEG cannot be read as an image"),
    ],
)
def test_an_incomplete_or_damaged_folder_is_one_line(damage: Callable[[Path], None], says: str, official: Path, tmp_path: Path) -> None:
    shutil.copytree(official / FOLDER, tmp_path / FOLDER)
    damage(tmp_path / FOLDER)
    with pytest.raises(UserError, match=says) as refused:
        TinyImageNet().info(tmp_path)
    assert "\n" not in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == [FOLDER], "nothing half made"


def test_a_cut_archive_is_one_line(official: Path, tmp_path: Path) -> None:
    content = (official / f"{FOLDER}.zip").read_bytes()
    (tmp_path / f"{FOLDER}.zip").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="is truncated or corrupted"):
        TinyImageNet().info(tmp_path)
