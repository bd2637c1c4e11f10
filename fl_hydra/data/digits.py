"""The digits that come with scikit-learn (Alpaydin and Kaynak 1998): 1,797 real handwritten digits, no download."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fl_hydra.data.dataset import datasets
from fl_hydra.data.images import Arrays, ImageDataset
from fl_hydra.randomness import generator


@datasets.register
@dataclass
class Digits(ImageDataset):
    """The 8x8 digits enlarged to 16x16 pixels; a fixed fifth of each class is the test set."""

    name: str = "digits"
    crop: int = 1

    @property
    def class_count(self) -> int:
        return 10

    def source(self, root: Path) -> None:
        return None

    def read(self, root: Path) -> Arrays:
        from sklearn.datasets import load_digits

        raw = load_digits()
        small = np.clip(np.rint(raw.images * (255 / 16)), 0, 255).astype(np.uint8)
        images = small.repeat(2, axis=1).repeat(2, axis=2)[..., None]
        labels = raw.target.astype(np.int64)
        test = np.concatenate(
            [
                generator(0, "digits-test", label).permutation(members := np.flatnonzero(labels == label))[: round(0.2 * len(members))]
                for label in range(10)
            ]
        )
        train = np.setdiff1d(np.arange(len(labels)), test)
        return Arrays(images[train], labels[train], images[test], labels[test])
