"""Images: splits, order and augmentation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fl_hydra.data.digits import Digits
from fl_hydra.data.images import Arrays, channel_statistics
from fl_hydra.sharding.base import Shards, equal_sizes
from fl_hydra.sharding.shard_sampler import ShardSampler
from fl_hydra.training.images import Images
from tests.support.make import write_cifar100


def test_split_is_stratified_disjoint_and_covering(tmp_path: Path) -> None:
    dataset = Digits()
    labels = dataset.load(tmp_path).train_labels
    train, validation = dataset.split(labels, split_seed=0)
    assert sorted([*train, *validation]) == list(range(len(labels)))
    held = np.bincount(labels[validation]) / np.bincount(labels)
    assert np.abs(held - 0.1).max() < 0.005
    assert (np.bincount(labels[train]) == dataset.census(dataset.card(tmp_path)).classes).all()
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
