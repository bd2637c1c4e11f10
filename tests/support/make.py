"""Experiments, trainers and data files made for tests."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, open_dict

from fl_hydra.algorithms.base import algorithms
from fl_hydra.arguments import groups, keys
from fl_hydra.config import Config
from fl_hydra.resolving import resolve
from fl_hydra.schema import register_schema, typed
from fl_hydra.training.experiment import Experiment
from fl_hydra.training.trainer import Trainer

PROJECT = Path(__file__).resolve().parents[2]


def config(*overrides: str) -> Config:
    """The shipped configuration with overrides, as the command line composes it."""
    register_schema()
    values = [word for word in overrides if (key := word.partition("=")[0]) in keys() and key not in groups()]
    point = copy.deepcopy(_composed(tuple(word for word in overrides if word not in values)))
    ConfigLoaderImpl._apply_overrides_to_config(OverridesParser.create().parse_overrides(values), point)
    return typed(point)


@lru_cache(maxsize=64)
def _composed(choices: tuple[str, ...]) -> DictConfig:
    """What Hydra composes of some options, which takes it most of a test's time; values are put into copies, as a sweep does."""
    with initialize_config_dir(str(PROJECT / "conf")):
        composed = compose("config", overrides=list(choices))
    with open_dict(composed):
        composed.pop("hydra", None)
    return composed


def kind(algorithm: str) -> str:
    """The oldest algorithm of the same kind: `centralized`, `localsgd` (workers) or `fedavg` (clients). What suits it suits all of them."""
    cls = algorithms[algorithm]
    return "fedavg" if cls.federated else "centralized" if cls.J is None else "localsgd"


def inner(algorithm: str) -> str:
    """A local optimizer with momentum, where the method allows one."""
    return "sgd" if algorithms[algorithm].sgd_inside else "sgdm"


def own_numbers(algorithm: str, position: int) -> tuple[str, ...]:
    """Overrides of a method's own hyper-parameters that do not change shapes, others at every position."""
    return tuple(f"algorithm.{name}={0.1 * (position + 1)}" for name in algorithms[algorithm].hyper)


def experiment(*overrides: str, **parts: Any) -> Experiment:
    """A resolved experiment; `parts` replace its fields afterwards."""
    return replace(resolve(config(*overrides)), **parts)


def trainer(*overrides: str, engine: str = "loop", **parts: Any) -> Trainer:
    """A trainer on the CPU that writes nothing."""
    return Trainer(experiment(*overrides, **parts), engine=engine, device="cpu")


def write_cifar100(folder: Path, train: int = 1000, test: int = 200) -> Path:
    """A small cifar100.npz in the real format, with learnable images."""
    rng = np.random.default_rng(0)
    arrays = {}
    for name, count in (("train", train), ("test", test)):
        labels = (np.arange(count) % 100).astype(np.uint8)
        noise = rng.integers(0, 100, (count, 32, 32, 3))
        arrays[f"{name}_images"] = (noise + labels[:, None, None, None]).astype(np.uint8)
        arrays[f"{name}_labels"] = labels
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "cifar100.npz"
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def write_shakespeare(folder: Path, roles: int = 6, lines: int = 45) -> Path:
    """A short raw text in the form of the etext: one play, whose roles speak in turn; enough for training, validation and tests."""
    rng = np.random.default_rng(0)
    words = ["thou", "art", "more", "lovely", "and", "temperate", "rough", "winds", "do", "shake", "the", "darling", "buds", "of", "may"]
    speeches = [
        f"  ROLE {chr(65 + role)}. {' '.join(rng.choice(words, 8))},\n    {' '.join(rng.choice(words, 8))};\n"
        for _ in range(lines)
        for role in range(roles)
    ]
    first = "This is the 100th Etext file presented by Project Gutenberg, and\n"
    title = "\n\n1609\n\n{}\n\nby William Shakespeare\n\n"
    path = folder / "shakespeare" / "raw_data.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(first + title.format("THE SONNETS") + "  From fairest creatures\n" + title.format("A PLAY") + "".join(speeches))
    return path
