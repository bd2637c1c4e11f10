"""Experiments, trainers and data files made for tests."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache
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
    overrides = _without_steps(overrides)
    values = [word for word in overrides if (key := word.partition("=")[0]) in keys() and key not in groups()]
    point = _composed(tuple(word for word in overrides if word not in values))
    ConfigLoaderImpl._apply_overrides_to_config(OverridesParser.create().parse_overrides(values), point)
    return typed(point)


def _without_steps(overrides: tuple[str, ...]) -> tuple[str, ...]:
    """What suits clients' methods has a J; FedSGD, where it is 1, refuses it."""
    return tuple(word for word in overrides if not word.startswith("J=")) if "algorithm=fedsgd" in overrides else overrides


def _composed(choices: tuple[str, ...]) -> DictConfig:
    """What Hydra composes of some options, put together of what it composes of each alone (`test_config.py` compares the two).

    Hydra takes most of a test's time: so it is asked once for each option, not for each choice of several. Beside what they are themselves,
    methods and datasets choose options of other groups, which those that are typed replace.
    """
    chosen = {word.partition("=")[0]: word for word in choices}
    if len(chosen) < len(choices) or not chosen.keys() <= groups().keys():
        return copy.deepcopy(by_hydra(choices))
    nothing, whole = by_hydra(()), copy.deepcopy(by_hydra(()))
    for group in sorted(chosen, key=lambda group: group not in ("algorithm", "dataset")):
        alone = by_hydra((chosen[group],))
        for key in groups() if group in ("algorithm", "dataset") else (group,):
            if key == group or alone[key] != nothing[key]:
                whole[key] = alone[key]  # a copy
    return whole


@cache
def by_hydra(choices: tuple[str, ...]) -> DictConfig:
    """What Hydra itself composes of options."""
    register_schema()
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


def suited(algorithm: str, *words: str) -> tuple[str, ...]:
    """Words with a model that a method can train, as FedBN needs normalisations, which the small one has not, and with numbers that go
    with few local steps."""
    if algorithm == "fedrep":
        return ("algorithm.head_steps=1", *words)
    if algorithm != "fedbn":
        return words
    normalised = ("model=convmixer", "model.width=4", "model.depth=1", "model.patch=4", "model.kernel=3")
    return (*normalised, *(word for word in words if not word.startswith("model.")))


def own_numbers(algorithm: str, position: int) -> tuple[str, ...]:
    """Overrides of a method's own hyper-parameters that do not change shapes, others at every position, all above 0."""
    return tuple(f"algorithm.{name}={0.1 * (position + 1):.1f}" for name in algorithms[algorithm].hyper)


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
