"""MNIST's and EMNIST's files: at each place, compressed or not, damaged, or not there."""

from __future__ import annotations

import gzip
import hashlib
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fl_hydra.data.cifar100 import import_torchvision
from fl_hydra.data.images import Arrays
from fl_hydra.data.mnist import CLASSES, EMNIST, MNIST
from fl_hydra.errors import UserError
from tests.support.data_files import write_emnist, write_idx, write_mnist
from tests.support.make import experiment, trainer


def assert_same(found: Arrays, written: Arrays) -> None:
    """What was read is what was written, in canonical order."""
    assert found.fingerprint() == written.canonical().fingerprint()


@pytest.mark.parametrize(("where", "suffix"), [("MNIST/raw", ".gz"), ("MNIST/raw", ""), ("MNIST", ".gz"), ("", "")])
def test_mnist_is_read_from_each_place_compressed_or_not(where: str, suffix: str, tmp_path: Path) -> None:
    written = write_mnist(tmp_path, suffix, where)
    assert_same(MNIST().load(tmp_path), written)
    info = MNIST().info(tmp_path)
    assert (info.shape, info.classes, info.train_counts, info.test_counts) == ((1, 28, 28), 10, (20,) * 10, (5,) * 10)
    assert (MNIST().crop, MNIST().flip) == (0, False)


@pytest.mark.parametrize(("variant", "classes"), CLASSES.items())
def test_each_set_of_emnist_is_read_upright_with_labels_from_0(variant: str, classes: int, tmp_path: Path) -> None:
    written = write_emnist(tmp_path, variant, classes, first=int(variant == "letters"))
    dataset = EMNIST(variant=variant)
    assert_same(dataset.load(tmp_path), written)
    info = dataset.info(tmp_path)
    assert (info.classes, info.train_counts, info.test_counts) == (classes, (6,) * classes, (2,) * classes)
    assert (tmp_path / f".emnist-{variant}.card.json").is_file()


def test_sets_of_emnist_beside_each_other_are_kept_apart(tmp_path: Path) -> None:
    write_emnist(tmp_path, "digits", 10)
    write_emnist(tmp_path, "letters", 26, first=1)
    prints = [EMNIST(variant=variant).info(tmp_path).fingerprint for variant in ("digits", "letters", "digits")]
    assert prints[0] == prints[2] != prints[1]
    words = ("dataset=emnist", "dataset.variant=letters", "batch_size=8", f"data={tmp_path}")
    assert experiment(*words).dataset_info.classes == 26


def test_emnist_is_unpacked_from_its_archive_which_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = write_emnist(tmp_path / "made", "balanced", 47, where="gzip")
    archive = tmp_path / "gzip.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        for path in (tmp_path / "made" / "gzip").iterdir():
            opened.write(path, f"gzip/{path.name}")
    with pytest.raises(UserError, match="its md5 is not 58c8d27c78d21e728a6bc7b3cc06412e"):
        EMNIST().info(tmp_path)
    monkeypatch.setattr(EMNIST, "archive_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    assert_same(EMNIST().load(tmp_path), written)
    archive.unlink()
    assert sum(EMNIST().info(tmp_path).train_counts) == 6 * 47


@pytest.mark.parametrize(
    ("dataset", "says"),
    [
        (MNIST(), r"could not be downloaded \(.*no network.*\); put them into .*MNIST/raw, or name another folder with data=FOLDER"),
        (
            EMNIST(),
            r"could not be downloaded \(.*no network.*\); put them, or gzip.zip \(md5 58c8.*\) with all of EMNIST, into .*EMNIST/raw",
        ),
    ],
)
def test_without_files_or_network_the_line_says_what_to_put_where(
    dataset: MNIST | EMNIST, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise RuntimeError("Error downloading:\nno network")

    torchvision_datasets = import_torchvision("torchvision.datasets")
    monkeypatch.setattr(torchvision_datasets.mnist, "download_and_extract_archive", offline)
    monkeypatch.setattr(torchvision_datasets.utils, "download_url", offline)
    with pytest.raises(UserError, match=says) as refused:
        dataset.info(tmp_path)
    assert all(f"{name}.gz" in str(refused.value) for name in dataset.files) and "\n" not in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_mnist_is_downloaded_by_torchvision_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torchvision_datasets = import_torchvision("torchvision.datasets")
    written = write_mnist(tmp_path / "served")

    def serve(url: str, download_root: str, filename: str, md5: str) -> None:
        content = (tmp_path / "served" / "MNIST" / "raw" / filename).read_bytes()
        assert dict(torchvision_datasets.MNIST.resources)[filename] == md5
        (Path(download_root) / filename).write_bytes(content)
        (Path(download_root) / filename.removesuffix(".gz")).write_bytes(gzip.decompress(content))

    monkeypatch.setattr(torchvision_datasets.mnist, "download_and_extract_archive", serve)
    root = tmp_path / "data"
    assert_same(MNIST().load(root), written)
    assert sorted(path.name for path in (root / "MNIST" / "raw").iterdir()) == sorted(f"{name}.gz" for name in MNIST().files)
    assert [path.name for path in root.iterdir()] == ["MNIST"]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("file", "damage", "says"),
    [
        ("train-images-idx3-ubyte", cut, "train-images-idx3-ubyte.gz is truncated or corrupted"),
        ("train-images-idx3-ubyte", flipped, "train-images-idx3-ubyte.gz is truncated or corrupted"),
        ("t10k-labels-idx1-ubyte", lambda path: path.write_bytes(b""), "t10k-labels-idx1-ubyte.gz is (truncated|no idx)"),
        ("t10k-labels-idx1-ubyte", lambda path: write_idx(path, np.zeros((2, 2), np.uint8)), "no idx file of bytes with 1 dimension"),
        ("train-labels-idx1-ubyte", lambda path: write_idx(path, np.full(200, 10, np.uint8)), "label 10 is none of the 10 of MNIST"),
        ("train-labels-idx1-ubyte", lambda path: write_idx(path, np.zeros(7, np.uint8)), "200 images and .* 7 labels"),
        ("train-images-idx3-ubyte", lambda path: write_idx(path, np.zeros((200, 20, 28), np.uint8)), "images of 20x28 pixels"),
    ],
)
def test_a_damaged_or_foreign_file_is_one_line(file: str, damage: Callable[[Path], None], says: str, tmp_path: Path) -> None:
    write_mnist(tmp_path)
    damage(tmp_path / "MNIST" / "raw" / f"{file}.gz")
    with pytest.raises(UserError, match=says) as refused:
        MNIST().info(tmp_path)
    assert "replace" in str(refused.value) and "\n" not in str(refused.value)


def test_an_unpacked_file_that_was_cut_off_is_told_by_its_head(tmp_path: Path) -> None:
    write_mnist(tmp_path, "")
    cut(tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte")
    with pytest.raises(UserError, match=r"holds 156700 bytes, and its head says .200, 28, 28."):
        MNIST().info(tmp_path)


def test_an_unknown_set_of_emnist_is_one_line() -> None:
    with pytest.raises(UserError, match=r"dataset.variant=writers: choose byclass, bymerge, balanced, letters, digits or mnist"):
        EMNIST(variant="writers")


@pytest.mark.parametrize("model", ["lenet", "small"])
def test_both_models_take_28_by_28_pixels_of_one_channel(model: str, tmp_path: Path) -> None:
    write_mnist(tmp_path)
    run = trainer(
        "dataset=mnist", f"model={model}", f"data={tmp_path}", "algorithm=fedavg", "K=4", "C=0.5", "J=2", "rounds=1", "batch_size=8"
    )
    before = run.state.model.clone()
    run.run_round()
    assert run.state.model.isfinite().all() and (run.state.model != before).any()
