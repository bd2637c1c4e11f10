"""Datasets, splits, order and augmentation."""

from __future__ import annotations

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

import numpy as np
import pytest
import torch

from fl_hydra.data import cifar100
from fl_hydra.data.cifar100 import CIFAR100, SCRATCH, import_torchvision
from fl_hydra.data.digits import Digits
from fl_hydra.data.images import Arrays, channel_statistics
from fl_hydra.errors import UserError
from fl_hydra.files import FORGOTTEN, remove_abandoned
from fl_hydra.processes import machine
from fl_hydra.randomness import generator, hash_uniform
from fl_hydra.sharding.base import Shards, equal_sizes
from fl_hydra.sharding.shard_sampler import ShardSampler
from fl_hydra.training.image_samples import Images
from tests.support.make import write_cifar100


def test_split_is_stratified_disjoint_and_covering(tmp_path: Path) -> None:
    dataset = Digits()
    labels = dataset.load(tmp_path).train_labels
    train, validation = dataset.split(labels, split_seed=0)
    assert sorted([*train, *validation]) == list(range(len(labels)))
    held = np.bincount(labels[validation]) / np.bincount(labels)
    assert np.abs(held - 0.1).max() < 0.005
    assert (np.bincount(labels[train]) == dataset.sample_counts(dataset.info(tmp_path)).classes).all()
    assert dataset.split(labels, split_seed=1)[1].tolist() != validation.tolist()
    everything, nothing = Digits(validation=0).split(labels, split_seed=0)
    assert (len(everything), len(nothing)) == (len(labels), 0)


def test_digits_are_real_and_split_by_class(tmp_path: Path) -> None:
    arrays = Digits().load(tmp_path)
    assert arrays.train_images.shape[1:] == (16, 16, 1)
    assert len(arrays.train_labels) + len(arrays.test_labels) == 1797
    share = np.bincount(arrays.test_labels) / (np.bincount(arrays.train_labels) + np.bincount(arrays.test_labels))
    assert np.abs(share - 0.2).max() < 0.005
    train = {image.tobytes() for image in arrays.train_images}
    assert sum(image.tobytes() in train for image in arrays.test_images) == 0


def test_canonical_order_and_fingerprint_do_not_depend_on_the_order_of_the_file(tmp_path: Path) -> None:
    with np.load(write_cifar100(tmp_path)) as file:
        arrays = Arrays(*(file[name] for name in ("train_images", "train_labels", "test_images", "test_labels")))
    order = np.random.default_rng(1).permutation(len(arrays.train_labels))
    shuffled = Arrays(arrays.train_images[order], arrays.train_labels[order], arrays.test_images, arrays.test_labels)
    one, other = arrays.canonical(), shuffled.canonical()
    assert one.fingerprint() == other.fingerprint()
    assert one.fingerprint() != arrays.fingerprint()
    assert (np.diff(one.train_labels.astype(int)) >= 0).all()
    first, second = one.train_images[one.train_labels == 5][:2].reshape(2, -1)
    assert first.tobytes() < second.tobytes()


def test_channel_statistics() -> None:
    images = np.random.default_rng(0).integers(0, 256, (50, 8, 8, 3)).astype(np.uint8)
    mean, deviation = channel_statistics(images)
    np.testing.assert_allclose(mean, (images / 255).mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(deviation, (images / 255).std((0, 1, 2)), rtol=1e-12)


@pytest.mark.parametrize("size", [1, 2, 7, 8, 63, 64, 200])
def test_order_visits_everything_once_a_pass_across_batches(size: int) -> None:
    """Short shards, whose passes are drawn together, and long ones."""
    shards = Shards.from_sizes(np.arange(2 * size), equal_sizes(2 * size, 2))
    order = ShardSampler(shards, seed=0)
    long = order.indices(1, 0, 5 * size)
    assert [sorted(long[start : start + size].tolist()) for start in range(0, 5 * size, size)] == [list(range(size, 2 * size))] * 5
    pieces = np.concatenate([order.indices(1, start, min(3, 5 * size - start)) for start in range(0, 5 * size, 3)])
    assert pieces.tolist() == long.tolist(), "however it is cut into batches"
    if size > 2:
        assert long[:size].tolist() != long[size : 2 * size].tolist()
        assert ShardSampler(shards, seed=1).indices(1, 0, 5 * size).tolist() != long.tolist()
        assert [image - size for image in long] != order.indices(0, 0, 5 * size).tolist()


def test_draws_depend_on_nothing_but_their_coordinates() -> None:
    assert generator(0, "order", 1, 2).integers(1 << 30) == generator(0, "order", 1, 2).integers(1 << 30)
    different = {int(generator(*where).integers(1 << 60)) for where in ((0, "a", 1), (0, "a", 2), (0, "b", 1), (1, "a", 1), (0, "a", 1, 1))}
    assert len(different) == 5


def test_hash_is_uniform_and_independent_between_neighbours() -> None:
    n = 200_000
    draws = hash_uniform(torch.full((n,), 12345), torch.arange(n)).numpy() / 2**32
    assert abs(draws.mean() - 0.5) < 5 / np.sqrt(12 * n)
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 5 / np.sqrt(n)
    other = hash_uniform(torch.full((n,), 12346), torch.arange(n)).numpy() / 2**32
    assert abs(np.corrcoef(draws, other)[0, 1]) < 5 / np.sqrt(n)
    histogram = np.bincount((draws * 64).astype(int), minlength=64)
    assert ((histogram - n / 64) ** 2 / (n / 64)).sum() < 63 + 5 * np.sqrt(2 * 63)
    assert 0 <= draws.min() <= draws.max() < 1


def test_hash_is_what_it_was() -> None:
    """Fixed numbers, worked out with unbounded integers: a change here changes every run."""

    def finalise(x: int) -> int:
        x = (x ^ (x >> 16)) * 0x7FEB352D % 2**32
        x = (x ^ (x >> 15)) * 0x846CA68B % 2**32
        return x ^ (x >> 16)

    counters = [0, 1, 77, 2**31, 2**32 - 1, 2**32 + 5]
    got = hash_uniform(torch.tensor(987654321), torch.tensor(counters)).tolist()
    assert got == [finalise(finalise(c % 2**32) ^ 987654321 ^ (c >> 32)) for c in counters]


def test_crop_and_flip_are_torchvisions_drawn_for_each_image() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (4, 8, 8, 3)).astype(np.uint8)
    mean, deviation = np.array([0.4, 0.5, 0.6]), np.array([0.2, 0.3, 0.4])
    images = Images(pixels, np.arange(4), mean, deviation, crop=2, flip=True, dtype=torch.float64)
    count = 3000
    out = images.drawn(torch.arange(count) % 4, torch.full((count,), 99), torch.arange(count))
    assert out.shape == (count, 3, 8, 8)
    assert out.is_contiguous(memory_format=torch.channels_last)
    padded = np.pad(pixels, ((0, 0), (2, 2), (2, 2), (0, 0))) / 255
    candidates = {}
    for image in range(4):
        for top in range(5):
            for left in range(5):
                window = padded[image, top : top + 8, left : left + 8]
                for flipped in (False, True):
                    view = window[:, ::-1] if flipped else window
                    candidates[((view - mean) / deviation).astype(np.float32).tobytes()] = (image, top, left, flipped)
    seen = [candidates[np.ascontiguousarray(one.permute(1, 2, 0).numpy().astype(np.float32)).tobytes()] for one in out]
    assert [image for image, *_ in seen] == [i % 4 for i in range(count)]
    draws = np.bincount([top * 10 + left * 2 + flipped for _, top, left, flipped in seen], minlength=50)
    assert (draws > 0).all(), "every offset, flipped or not"
    assert ((draws - count / 50) ** 2 / (count / 50)).sum() < 49 + 5 * np.sqrt(2 * 49)


def test_validation_and_test_images_are_not_augmented() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1)).astype(np.uint8)
    images = Images(pixels, np.arange(5), np.array([0.5]), np.array([0.25]), crop=2, flip=True, dtype=torch.float64)
    expected = (torch.from_numpy(pixels[1:4]).permute(0, 3, 1, 2) / 255.0 - 0.5) / 0.25
    torch.testing.assert_close(images.plain(torch.arange(1, 4)), expected.double(), rtol=1e-6, atol=1e-6)


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
    assert "replace it by a sound copy, or delete it" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["cifar100.npz"]


def write_wrong_shape(path: Path) -> None:
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **{**arrays, "train_images": arrays["train_images"][:, :28]})


def official_archive(folder: Path) -> Path:
    """A small archive with the layout of the official one."""
    rng = np.random.default_rng(0)
    path = folder / cifar100.ARCHIVE
    with tarfile.open(path, "w:gz") as archive:
        for name, count in (("train", 300), ("test", 100)):
            content = pickle.dumps(
                {
                    "data": rng.integers(0, 256, (count, 3072)).astype(np.uint8),
                    "fine_labels": [i % 100 for i in range(count)],
                    "coarse_labels": [0] * count,
                    "filenames": [""] * count,
                }
            )
            member = tarfile.TarInfo(f"{cifar100.FOLDER}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        content = pickle.dumps({"fine_label_names": [str(i) for i in range(100)], "coarse_label_names": ["x"]})
        member = tarfile.TarInfo(f"{cifar100.FOLDER}/meta")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return path


def test_official_archive_put_in_place_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import hashlib

    archive = official_archive(tmp_path)
    datasets = import_torchvision("torchvision.datasets")
    with tarfile.open(archive) as content:
        members = {name: content.extractfile(f"{cifar100.FOLDER}/{name}") for name in ("train", "test", "meta")}
        md5s = {name: hashlib.md5(member.read()).hexdigest() for name, member in members.items() if member is not None}
    md5 = hashlib.md5(archive.read_bytes()).hexdigest()
    monkeypatch.setattr(cifar100, "ARCHIVE_MD5", md5)
    monkeypatch.setattr(datasets.CIFAR100, "tgz_md5", md5)
    monkeypatch.setattr(datasets.CIFAR100, "train_list", [["train", md5s["train"]]])
    monkeypatch.setattr(datasets.CIFAR100, "test_list", [["test", md5s["test"]]])
    monkeypatch.setattr(datasets.CIFAR100, "meta", {**datasets.CIFAR100.meta, "md5": md5s["meta"]})
    info = CIFAR100().info(tmp_path)
    assert (sum(info.train_counts), sum(info.test_counts), info.classes) == (300, 100, 100)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".cifar100.card.json", cifar100.ARCHIVE, "cifar100.npz"]
    image = np.load(tmp_path / "cifar100.npz")["train_images"][0]
    first = np.random.default_rng(0).integers(0, 256, (300, 3072)).astype(np.uint8)[0].reshape(3, 32, 32).transpose(1, 2, 0)
    assert (image == first).all()


def test_truncated_archive_is_refused_and_left_alone(tmp_path: Path) -> None:
    archive = official_archive(tmp_path)
    archive.write_bytes(archive.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"truncated or corrupted .its md5 is not eb9058c3a382ffc7106e4002c42a8d85"):
        CIFAR100().info(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [cifar100.ARCHIVE]


def test_incomplete_extracted_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / cifar100.FOLDER).mkdir()
    (tmp_path / cifar100.FOLDER / "train").write_bytes(b"half")
    with pytest.raises(UserError, match="incomplete or corrupted"):
        CIFAR100().info(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [cifar100.FOLDER]


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
        module._info.cache_clear()
        images._load.cache_clear()
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
        module._info.cache_clear()
        images._load.cache_clear()

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
    images._load.cache_clear()
    with pytest.raises(UserError):
        CIFAR100().check_loaded(tmp_path, CIFAR100().info(tmp_path))
    new_process()


def test_litter_of_dead_processes_is_removed_and_nobody_elses(tmp_path: Path) -> None:
    write_cifar100(tmp_path)
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    old = time.time() - 2 * FORGOTTEN

    def litter(where: str, pid: int, aged: bool = False) -> list[Path]:
        folder = tmp_path / f"{SCRATCH}{where}-{pid}-x{len(list(tmp_path.iterdir()))}"
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
