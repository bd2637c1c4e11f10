"""Small data files in the formats of public datasets, with the arrays that they hold."""

from __future__ import annotations

import gzip
import io
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fl_hydra.data.images import Arrays


def write_idx(path: Path, array: NDArray[np.uint8]) -> None:
    """An idx file, compressed where its name ends with `.gz`."""
    content = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content, 1) if path.suffix == ".gz" else content)


def made_up(classes: int, train: int, test: int, side: int, channels: int, seed: int = 0) -> Arrays:
    """Images that can be learned: each class has a brightness, with noise."""
    rng = np.random.default_rng(seed)

    def part(count: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        labels = (np.arange(count) % classes).astype(np.int64)
        bright = (labels * 155 // classes)[:, None, None, None]
        return (rng.integers(0, 100, (count, side, side, channels)) + bright).astype(np.uint8), labels

    return Arrays(*part(train), *part(test))


def write_mnist(root: Path, suffix: str = ".gz", where: str = "MNIST/raw", train: int = 200, test: int = 50) -> Arrays:
    """The four files of MNIST, and what they hold."""
    arrays = made_up(10, train, test, 28, 1)
    for part, images, labels in (
        ("train", arrays.train_images, arrays.train_labels),
        ("t10k", arrays.test_images, arrays.test_labels),
    ):
        write_idx(root / where / f"{part}-images-idx3-ubyte{suffix}", images[..., 0])
        write_idx(root / where / f"{part}-labels-idx1-ubyte{suffix}", labels.astype(np.uint8))
    return arrays


def write_emnist(root: Path, variant: str, classes: int, where: str = "EMNIST/raw", first: int = 0, each: int = 6) -> Arrays:
    """The four files of a set of EMNIST, whose images are transposed, and what they hold upright.

    first: its lowest label. each: training images of a class.
    """
    arrays = made_up(classes, each * classes, 2 * classes, 28, 1)
    for part, images, labels in (("train", arrays.train_images, arrays.train_labels), ("test", arrays.test_images, arrays.test_labels)):
        write_idx(root / where / f"emnist-{variant}-{part}-images-idx3-ubyte.gz", images[..., 0].transpose(0, 2, 1).copy())
        write_idx(root / where / f"emnist-{variant}-{part}-labels-idx1-ubyte.gz", (labels + first).astype(np.uint8))
    return arrays


def encoded(image: NDArray[np.uint8], kind: str = "PNG") -> bytes:
    """A picture file of an image [height, width, channels]."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, kind, **({"quality": 95} if kind == "JPEG" else {}))
    return buffer.getvalue()


def write_folder(folder: Path, arrays: Arrays, names: str = "abcdefghij", parts: tuple[str, ...] = ("train", "test")) -> None:
    """A folder of pictures for each class, which are called by letters; `parts`: of the sets, or one without a name."""
    sets = ((arrays.train_images, arrays.train_labels), (arrays.test_images, arrays.test_labels))
    for part, (images, labels) in zip(parts, sets, strict=False):
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            path = folder / part / names[label] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(image))
