"""CIFAR's files: prepared, official, damaged, or not there."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_hydra.data.cifar10 import CIFAR10
from fl_hydra.data.cifar100 import CIFAR, CIFAR100, import_torchvision
from fl_hydra.errors import UserError
from fl_hydra.files import FORGOTTEN, remove_abandoned
from fl_hydra.processes import machine
from tests.support.make import write_cifar100


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:5000]), "truncated or corrupted"),
        (lambda path: path.write_bytes(b""), "truncated or corrupted"),
        (lambda path: path.write_bytes(path.read_bytes()[:100_000] + b"\xff" * 9 + path.read_bytes()[100_009:]), "truncated or corrupted"),
        (lambda path: np.savez(path, other=np.zeros(3)), "not a prepared dataset"),
        (lambda path: write_wrong_shape(path), "expected train_images uint8 .N, 32, 32, 3."),
    ],
)
def test_damaged_prepared_file_is_one_line_with_the_way_out(damage, says: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    damage(write_cifar100(tmp_path))
    with pytest.raises(UserError, match=says) as refused:
        CIFAR100().info(tmp_path)
    assert "replace it with an intact copy, or delete it" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["cifar100.npz"]


def write_wrong_shape(path: Path) -> None:
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **{**arrays, "train_images": arrays["train_images"][:, :28]})


def official_archive(folder: Path, cls: type[CIFAR] = CIFAR100) -> Path:
    """A small archive with the layout of the official one."""
    rng = np.random.default_rng(0)
    path = folder / cls.archive
    if cls is CIFAR10:
        sizes = {**{f"data_batch_{number}": 60 for number in range(1, 6)}, "test_batch": 100}
        meta = "batches.meta"
        of_meta: dict[str, Any] = {"label_names": [str(i) for i in range(10)]}
    else:
        sizes = {"train": 300, "test": 100}
        meta = "meta"
        of_meta = {"fine_label_names": [str(i) for i in range(100)], "coarse_label_names": ["x"]}
    contents: dict[str, dict[str, Any]] = {}
    for name, count in sizes.items():
        content = {"data": rng.integers(0, 256, (count, 3072)).astype(np.uint8), "filenames": [""] * count}
        labels = [i % cls.classes for i in range(count)]
        contents[name] = content | ({"labels": labels} if cls is CIFAR10 else {"fine_labels": labels, "coarse_labels": [0] * count})
    with tarfile.open(path, "w:gz") as archive:
        for name, content in {**contents, meta: of_meta}.items():
            written = pickle.dumps(content)
            member = tarfile.TarInfo(f"{cls.folder}/{name}")
            member.size = len(written)
            archive.addfile(member, io.BytesIO(written))
    return path


def accept(archive: Path, cls: type[CIFAR], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have torchvision and us take an archive for the official one."""
    official = getattr(import_torchvision("torchvision.datasets"), cls.title.replace("-", ""))
    with tarfile.open(archive) as content:
        members = {Path(name).name: content.extractfile(name) for name in content.getnames()}
        md5s = {name: hashlib.md5(member.read()).hexdigest() for name, member in members.items() if member is not None}
    md5 = hashlib.md5(archive.read_bytes()).hexdigest()
    monkeypatch.setattr(cls, "archive_md5", md5)
    monkeypatch.setattr(official, "tgz_md5", md5)
    monkeypatch.setattr(official, "train_list", [[name, md5s[name]] for name, _ in official.train_list])
    monkeypatch.setattr(official, "test_list", [[name, md5s[name]] for name, _ in official.test_list])
    monkeypatch.setattr(official, "meta", {**official.meta, "md5": md5s[official.meta["filename"]]})


@pytest.mark.parametrize("cls", [CIFAR100, CIFAR10])
def test_official_archive_put_in_place_by_hand(cls: type[CIFAR], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = official_archive(tmp_path, cls)
    accept(archive, cls, monkeypatch)
    info = cls().info(tmp_path)
    assert (sum(info.train_counts), sum(info.test_counts), info.classes) == (300, 100, cls.classes)
    prepared = f"{cls.name}.npz"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([f".{cls.name}.card.json", cls.archive, prepared])
    with np.load(tmp_path / prepared) as file:
        images, labels = file["train_images"], file["train_labels"]
    raw = np.random.default_rng(0).integers(0, 256, (300 if cls is CIFAR100 else 60, 3072)).astype(np.uint8)
    assert (images[: len(raw)] == raw.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)).all()
    assert labels[:60].tolist() == [i % cls.classes for i in range(60)]
    assert (cls().crop, cls().flip) == (4, True)


def test_truncated_archive_is_refused_and_left_alone(tmp_path: Path) -> None:
    archive = official_archive(tmp_path)
    archive.write_bytes(archive.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"truncated or corrupted .its md5 is not eb9058c3a382ffc7106e4002c42a8d85"):
        CIFAR100().info(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [CIFAR100.archive]


def test_incomplete_extracted_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / CIFAR100.folder).mkdir()
    (tmp_path / CIFAR100.folder / "train").write_bytes(b"half")
    with pytest.raises(UserError, match="incomplete or corrupted"):
        CIFAR100().info(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [CIFAR100.folder]


def test_no_file_and_no_network_says_what_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = import_torchvision("torchvision.datasets")

    def offline(*args: object, **kwargs: object) -> None:
        raise OSError("<urlopen error [Errno -3] Temporary failure in name resolution>")

    monkeypatch.setattr(datasets.cifar, "download_and_extract_archive", offline)
    with pytest.raises(UserError, match=r"could not be downloaded .*name resolution.*; put cifar-100-python.tar.gz"):
        CIFAR100().info(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_card_is_made_again_when_the_data_change(tmp_path: Path) -> None:
    from fl_hydra.data import dataset as module
    from fl_hydra.data import images

    first = CIFAR100().info(write_cifar100(tmp_path).parent)
    (tmp_path / ".cifar100.card.json").write_text("{broken")
    for changed in (False, True):
        module.read_info.cache_clear()
        images.load_arrays.cache_clear()
        if changed:
            write_cifar100(tmp_path, train=2000)
        again = CIFAR100().info(tmp_path)
        assert (again == first) is not changed


def other_content(path: Path) -> None:
    """Other images in a file of the same size and time."""
    before = path.stat()
    with np.load(path) as file:
        arrays = dict(file)
    arrays["train_images"] = 255 - arrays["train_images"]
    np.savez(path, **arrays)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def wrong_counts(path: Path) -> None:
    """A description that was changed by hand, or damaged."""
    info = path.parent / ".cifar100.card.json"
    content = json.loads(info.read_text())
    content["train_counts"][3] += 1
    info.write_text(json.dumps(content))


@pytest.mark.parametrize("change", [other_content, wrong_counts])
def test_a_card_that_is_not_of_what_was_loaded_is_refused_once(change: Callable[[Path], None], tmp_path: Path) -> None:
    from fl_hydra.data import dataset as module
    from fl_hydra.data import images

    def new_process() -> None:
        module.read_info.cache_clear()
        images.load_arrays.cache_clear()

    path = write_cifar100(tmp_path)
    new_process()
    CIFAR100().check_loaded(tmp_path, CIFAR100().info(tmp_path))
    change(path)
    new_process()
    with pytest.raises(UserError, match=r"not those that the run was named after; .*give the same command again") as refused:
        CIFAR100().check_loaded(tmp_path, CIFAR100().info(tmp_path))
    assert "\n" not in str(refused.value)
    new_process()
    CIFAR100().check_loaded(tmp_path, CIFAR100().info(tmp_path))
    other_content(path)  # between the description and the loading
    images.load_arrays.cache_clear()
    with pytest.raises(UserError):
        CIFAR100().check_loaded(tmp_path, CIFAR100().info(tmp_path))
    new_process()


def test_litter_of_dead_processes_is_removed_and_nobody_elses(tmp_path: Path) -> None:
    write_cifar100(tmp_path)
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    old = time.time() - 2 * FORGOTTEN

    def litter(where: str, pid: int, aged: bool = False) -> list[Path]:
        folder = tmp_path / f"{CIFAR100().scratch}{where}-{pid}-x{len(list(tmp_path.iterdir()))}"
        (folder / "inside").mkdir(parents=True)
        file = tmp_path / f".cifar100.card.json.{where}-{pid}-{len(list(tmp_path.iterdir()))}.tmp"
        file.write_text("")
        for path in (folder, file):
            if aged:
                os.utime(path, (old, old))
        return [folder, file]

    gone = litter(machine(), process.pid) + litter("0" * 8, process.pid, aged=True)
    stays = [*litter(machine(), os.getpid()), *litter("0" * 8, process.pid), tmp_path / ".mine.tmp"]
    stays[-1].write_text("somebody else's")
    os.utime(stays[-1], (old, old))
    CIFAR100().source(tmp_path)
    remove_abandoned(tmp_path)
    assert not [path for path in gone if path.exists()]
    assert all(path.exists() for path in stays)
