"""What the benchmark times: made-up data of real shapes, and trainers over them."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from hydra import compose
from omegaconf import open_dict
from torch import nn

from benchmarks.plain import PlainCharacters, PlainFedAvg, lenet
from fl_hydra.algorithms.fedavg import FedAvg
from fl_hydra.algorithms.scaffold import Scaffold
from fl_hydra.api import composing
from fl_hydra.arguments import prepare
from fl_hydra.config import Config
from fl_hydra.data.dataset import Dataset, DatasetInfo, datasets
from fl_hydra.data.images import Arrays, ImageDataset, channel_statistics
from fl_hydra.data.shakespeare import Shakespeare, TextArrays
from fl_hydra.data.shakespeare_text import WINDOW
from fl_hydra.models.lenet import LeNet
from fl_hydra.models.small import Small
from fl_hydra.optim.schedules import Constant
from fl_hydra.optim.sgdm import SGDM
from fl_hydra.participation.schemes import Uniform
from fl_hydra.resolving import resolve
from fl_hydra.schema import register_schema, typed
from fl_hydra.sharding.base import equal_sizes
from fl_hydra.sharding.iid import IID
from fl_hydra.training.experiment import Experiment
from fl_hydra.training.trainer import Trainer

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Size:
    """What part of the images is made up."""

    part = 1.0


def shrink() -> None:
    """Make up a fiftieth of the images from now on: to see that everything runs."""
    Size.part = 0.02


@datasets.register
@dataclass
class MadeUp(ImageDataset):
    """Random images with the shapes of CIFAR-100."""

    name: str = "made-up"
    validation: float = 0.0
    crop: int = 4
    flip: bool = True

    @property
    def class_count(self) -> int:
        return 100

    def source(self, root: Path) -> None:
        return None

    def read(self, root: Path) -> Arrays:
        return made_up(50_000, 32, 3)


@datasets.register
@dataclass
class ManyClients(MadeUp):
    """Enough small random images for 100,000 clients."""

    name: str = "many-clients"
    crop: int = 1

    def read(self, root: Path) -> Arrays:
        return made_up(400_000, 16, 1)


@datasets.register
@dataclass
class MadeUpText(Shakespeare):
    """Windows of random characters, of a hundred users with a thousand each."""

    name: str = "made-up-text"
    validation: float = 0.0
    min_samples: int = 1000

    def source(self, root: Path) -> Path:
        return scratch()

    def read(self, path: Path) -> TextArrays:
        characters = np.random.default_rng(0).integers(0, 80, 100 * 1200 + 81, np.uint8)
        starts = np.arange(100)[:, None] * 1200 + np.arange(1100)
        owners = np.repeat(np.arange(100), 1000), np.repeat(np.arange(100), 100)
        return TextArrays(characters, starts[:, :1000].ravel(), owners[0], starts[:, 1000:].ravel(), owners[1], tuple(map(str, range(100))))


@dataclass
class ReluBeforePool(LeNet):
    """LeNet as it is usually written; the same function, with four times the ReLUs."""

    def build(self, info: DatasetInfo) -> nn.Module:
        return lenet(info.classes)


def made_up(count: int, side: int, channels: int) -> Arrays:
    """Random images and labels; 10,000 of the images are the test set."""
    rng = np.random.default_rng(0)
    count, tested = int(count * Size.part), int(10_000 * Size.part)
    images = rng.integers(0, 256, (count, side, side, channels), np.uint8)
    return Arrays(images, np.arange(count) % 100, images[:tested], np.arange(tested) % 100)


@lru_cache(maxsize=1)
def scratch() -> Path:
    """A folder for what is computed once about made-up data; it goes with the process."""
    return Path(_scratch.name)


_scratch = tempfile.TemporaryDirectory(prefix="bench-")


def experiment(dataset: Dataset | None = None, **overrides: Any) -> Experiment:
    """A run long enough to be timed: FedAvg, K=100, m=10, J=4, batch 64 on the made-up CIFAR-100 unless overridden."""
    dataset = dataset or MadeUp()
    settings: dict[str, Any] = {
        "algorithm": FedAvg(),
        "model": LeNet(),
        "K": 100,
        "m": 10,
        "J": 4,
        "batch_size": 64,
        "precision": "fp32",
        "seed": 0,
    }
    return Experiment(
        dataset=dataset,
        dataset_info=dataset.info(scratch()),
        optimizer=SGDM(lr=0.1, weight_decay=1e-4, momentum=0.0),
        scheduler=Constant(),
        sharding=IID(),
        participation=Uniform(),
        budget=10**12,
        points=1,
        split_seed=0,
        data=scratch(),
        **settings | overrides,
    )


def trainer(dataset: Dataset | None = None, *, engine: str = "auto", runs: int = 1, **overrides: Any) -> Trainer:
    """A trainer of one run, or of several that differ in their seeds."""
    one = experiment(dataset, **overrides)
    return Trainer(*(dataclasses.replace(one, seed=seed) for seed in range(runs)), engine=engine, device=DEVICE)


def configuration(*words: str) -> Config:
    """What the command line composes of some words."""
    register_schema()
    with composing():
        content = compose("config", overrides=prepare(list(words)))
    with open_dict(content):
        content.pop("hydra", None)
    return typed(content)


def composed(*words: str) -> Experiment:
    """A run of words, with K=100 and C=0.1, on the made-up CIFAR-100.

    Raises:
        UserError: the words cannot go together.
    """
    dataset = MadeUp()
    found = resolve(configuration("K=100", "C=0.1", *words))
    return dataclasses.replace(found, dataset=dataset, dataset_info=dataset.info(scratch()), data=scratch(), budget=10**12, points=1)


def with_state(state_on: str, folder: Path | None, K: int, m: int) -> Trainer:
    """A trainer of SCAFFOLD on small images whose K clients all have state already, held in one place."""
    one = experiment(ManyClients(), algorithm=Scaffold(), model=Small(), K=K, m=m, batch_size=16)
    run = Trainer(one, device=DEVICE, client_folders=None if folder is None else [folder], state_on=state_on)
    store = run.sole_run.clients
    rows = {name: torch.empty(min(K, 1000), width, device=DEVICE) for name, width in run.group.kept_widths.items()}
    for first in range(0, K, len(rows["state.control"])):
        store.check_out(np.arange(first, first + len(rows["state.control"])), 0, rows)
        for values in rows.values():
            values.normal_(0, 1e-6)
    store.retire()
    return run


def plain_characters(J: int = 4, batch_size: int = 64) -> PlainCharacters:
    """The yardstick on the same windows."""
    dataset = MadeUpText()
    split = dataset.split(scratch(), 0)
    starts = torch.from_numpy(split.train)
    characters = torch.from_numpy(split.characters)
    shards = list(torch.randperm(len(starts)).split(equal_sizes(len(starts), 100).tolist()))
    windows = characters[starts[:, None] + torch.arange(WINDOW)]
    return PlainCharacters(windows, characters[starts + WINDOW].long(), shards, cohort=10, J=J, batch_size=batch_size, device=DEVICE)


def plain_loop(J: int = 4, batch_size: int = 64) -> PlainFedAvg:
    """The yardstick on the same images."""
    arrays = MadeUp().load(scratch())
    mean, deviation = channel_statistics(arrays.train_images)
    images = torch.from_numpy(((arrays.train_images / 255 - mean) / deviation).astype(np.float32)).permute(0, 3, 1, 2).contiguous()
    labels = torch.from_numpy(arrays.train_labels)
    shards = list(torch.randperm(len(labels)).split(equal_sizes(len(labels), 100).tolist()))
    return PlainFedAvg(images, labels, shards, cohort=10, J=J, batch_size=batch_size, device=DEVICE)


def bare_passes(count: int) -> Callable[[], None]:
    """Forward and backward passes of one image through the plain network, nothing else."""
    module = lenet(100).to(DEVICE)
    images, labels = torch.randn(1, 3, 32, 32, device=DEVICE), torch.zeros(1, dtype=torch.int64, device=DEVICE)

    def run() -> None:
        for _ in range(count):
            module.zero_grad()
            F.cross_entropy(module(images), labels).backward()

    return run
