"""What is chosen together, and what refuses it.

Each option is composed once by Hydra; choices are then put together of typed parts, as what is typed replaces what a method chooses.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cache
from typing import Any

from fl_hydra.algorithms.base import algorithms
from fl_hydra.config import Config
from fl_hydra.errors import UserError
from fl_hydra.models.convmixer import ConvMixer
from fl_hydra.resolving import resolve
from fl_hydra.training.experiment import Experiment
from fl_hydra.training.trainer import Trainer
from fl_hydra.uplinks.base import uplinks
from tests.combinations.covering import Pair, all_pairs, covering
from tests.support.layers import Grouped
from tests.support.make import PROJECT, config

SHIPPED = {group: {path.stem for path in (PROJECT / "conf" / group).glob("*.yaml")} for group in ("algorithm", "uplink")}
METHODS = tuple(name for name in algorithms if name in SHIPPED["algorithm"])
"""All of them. The other files of `conf/algorithm` are one of these with other options."""

FACTORS: dict[str, tuple[str, ...]] = {
    "algorithm": tuple(f"algorithm={name}" for name in METHODS),
    "uplink": tuple(f"uplink={name}" for name in uplinks if name in SHIPPED["uplink"]),
    "optimizer": tuple(f"optimizer={name}" for name in ("sgd", "sgdm", "adamw", "lars", "lamb", "radam")),
    "server": tuple(f"server={name}" for name in ("sgd", "fedavgm", "fedadam", "adam", "slowmo", "lookahead")),
    "participation": (
        "participation=uniform",
        "participation=uniform participation.dropout=0.4",
        "participation=all C=1",
        "participation=by_size",
        "participation=importance",
        "participation=oort",
    ),
    "sharding": ("sharding=iid", "sharding=classes N_c=5", "sharding=dirichlet", "sharding=quantity"),
    "swa": ("swa.start=null", "swa.start=0.1 swa.cycle=1"),
    "engine": ("engine=loop", "engine=stacked", "engine=im2col"),
    "pack": ("alone", "in a pack"),
}
"""Every method and every uplink; of the other groups, one option of each kind: the local optimizers that keep nothing, momentum, moments,
norms of layers and a count of steps, servers likewise; schemes that draw, lose, take all, draw by size, weigh, ask and learn."""

NORMALISED = ConvMixer(norm="group", patch=4, width=4, depth=1, kernel=3)
"""A small model with GroupNorm: BatchNorm's statistics go with no private uplink."""

SIZES = ("batch_size=4", "model.filters=1", "model.hidden=2", "evaluation.points=1")

SIZES_OF = {"algorithm=knn_per": ("algorithm.k=1",)}
"""A client may have few samples."""


@cache
def _typed(words: str) -> Config:
    return config(*words.split(), *SIZES, *SIZES_OF.get(words, ()))


@cache
def _own(group: str, words: str) -> dict[str, Any]:
    """The part of a configuration that an option is, and the keys that are typed with it."""
    composed = _typed(words)
    keys = {key: getattr(composed, key) for key in (word.partition("=")[0] for word in words.split()[1:]) if "." not in key}
    return {group: getattr(composed, group), **keys}


def config_of(row: Mapping[str, str], seed: int = 0) -> Config:
    """Some choices; all others are as the method (FedAvg, where none is chosen) makes them. Two rounds of a step or two."""
    base = _typed(row.get("algorithm", "algorithm=fedavg"))
    method = base.algorithm
    sizes: dict[str, Any] = {"seed": seed}
    sizes |= {} if method.J is None else {"J": 2}
    sizes |= {"K": 4, "C": 0.5} if method.federated else {"K": 4} if method.K is not None else {}
    for group, words in row.items():
        if group not in ("algorithm", "engine", "pack"):
            sizes |= _own(group, words)
    composed = dataclasses.replace(base, **{key: value for key, value in sizes.items() if key != "C" or method.C is not None})
    whole = resolve(dataclasses.replace(composed, samples=1)).round_samples or 4 * 2 * 4
    return dataclasses.replace(composed, samples=min(whole, 200) + 5)


def experiment_of(row: Mapping[str, str], seed: int = 0) -> Experiment:
    """Of some choices; with normalisation layers where the method needs them.

    Raises:
        UserError: they do not go together.
    """
    made = resolve(config_of(row, seed))
    return dataclasses.replace(made, model=Grouped()) if needs_normalisation(made.algorithm.option) else made


@cache
def needs_normalisation(method: str) -> bool:
    """Whether a method refuses a model without it."""
    try:
        Trainer(resolve(config_of({"algorithm": f"algorithm={method}"})), engine="loop")
    except UserError:
        return True
    return False


def trainer_of(row: Mapping[str, str], *seeds: int) -> Trainer:
    """A trainer of some choices with each of these seeds."""
    engine = row.get("engine", "engine=loop").partition("=")[2]
    return Trainer(*(experiment_of(row, seed) for seed in seeds), engine=engine, device="cpu")


def reason(row: Mapping[str, str]) -> str | None:
    """Why some choices do not go together; None if they do."""
    try:
        experiment_of(row)
    except UserError as error:
        return str(error)
    return None


@cache
def refusals() -> dict[Pair, str]:
    """The reason for each pair that does not go together."""
    found = {pair: reason(dict(pair)) for pair in all_pairs(FACTORS) if not {"engine", "pack"} & dict(pair).keys()}
    return {pair: why for pair, why in found.items() if why is not None}


@cache
def rows() -> tuple[dict[str, str], ...]:
    """Choices that go together, in which every pair that does occurs."""
    return tuple(covering(FACTORS, set(refusals()), lambda row: reason(row) is None))
