"""The three sets of samples of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fl_hydra.arrays import Indices
from fl_hydra.data.dataset import Dataset, datasets
from fl_hydra.data.images import ImageDataset, channel_statistics
from fl_hydra.data.sample_owners import SampleOwners
from fl_hydra.data.shakespeare import TextDataset
from fl_hydra.data.shakespeare_text import WINDOW
from fl_hydra.training.image_samples import Images
from fl_hydra.training.precision import Precision
from fl_hydra.training.samples import Samples
from fl_hydra.training.text_samples import Text


@dataclass(frozen=True)
class Split:
    """The three sets of a run, on the device, and who owns the training samples.

    owners: for `val` and `test`, numbers of the dataset's users whose the samples are, int64 [N], -1 of others; empty if it does not say.
    """

    train: Samples
    validation: Samples
    test: Samples
    sample_owners: SampleOwners
    owners: Mapping[str, Indices] = field(default_factory=dict)


def load_split(dataset: Dataset, root: Path, split_seed: int, precision: Precision, device: torch.device) -> Split:
    """Training, validation and test samples on the device; cached for the next run."""
    return _load_split(dataset.name, tuple(asdict(dataset).items()), root, split_seed, precision.images, device)


@lru_cache(maxsize=2)
def _load_split(
    name: str, settings: tuple[tuple[str, Any], ...], root: Path, split_seed: int, dtype: torch.dtype, device: torch.device
) -> Split:
    dataset = datasets[name](**dict(settings))
    if isinstance(dataset, TextDataset):
        return _text(dataset, root, split_seed, device)
    assert isinstance(dataset, ImageDataset)
    return _images(dataset, root, split_seed, dtype, device)


def _text(dataset: TextDataset, root: Path, split_seed: int, device: torch.device) -> Split:
    split = dataset.split(root, split_seed)
    train, validation, test = (
        Text(split.characters, starts, WINDOW, everywhere=dataset.everywhere, device=device)
        for starts in (split.train, split.validation, split.test)
    )
    return Split(train, validation, test, split.sample_owners, {"val": split.validation_users, "test": split.test_users})


def _images(dataset: ImageDataset, root: Path, split_seed: int, dtype: torch.dtype, device: torch.device) -> Split:
    """Images, normalised by the statistics of the training images."""
    arrays = dataset.load(root)
    train, validation = dataset.split(arrays.train_labels, split_seed, arrays.train_clients)
    mean, standard_deviation = channel_statistics(arrays.train_images[train])

    def images(
        pixels: np.ndarray[Any, np.dtype[np.uint8]], labels: np.ndarray[Any, np.dtype[np.int64]], crop: int = 0, flip: bool = False
    ) -> Images:
        return Images(pixels, labels, mean, standard_deviation, crop=crop, flip=flip, dtype=dtype, device=device)

    return Split(
        images(arrays.train_images[train], arrays.train_labels[train], dataset.crop, dataset.flip),
        images(arrays.train_images[validation], arrays.train_labels[validation]),
        images(arrays.test_images, arrays.test_labels),
        arrays.owners(train),
    )
