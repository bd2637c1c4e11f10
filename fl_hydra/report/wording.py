"""Words for readers in place of the program's keys: for axes, settings and data; and the format of figures."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fl_hydra.report.axes import AXES, Axis, Value
from fl_hydra.report.measures import Measure
from fl_hydra.report.results import Results, Setting, Statistic

COLUMNS = {
    "K": "K",
    "J": "J",
    "N_c": "N_c",
    "gamma": "γ",
    "dataset": "data",
    "server": "outer optimizer",
    "sharding": "division",
    "speeds": "speeds",
    "algorithm.momentum": "momentum",
    "server.lr": "outer rate",
}
"""Column headers that are shorter than an axis's title."""

PHRASES = {
    "model": "the model {}",
    "server": "{} outside",
    "scheduler": "the {} schedule",
    "sharding": "the {} division",
    "participation": "{} participation",
    "speeds": "{} speeds",
    "local_steps": "the rule “{}” for J",
    "algorithm.topology": "the {} graph",
    "algorithm.momentum": "momentum: {}",
    "batch_size": "batch size {}",
    "optimizer.lr": "learning rate {}",
    "server.lr": "outer learning rate {}",
    "optimizer.weight_decay": "weight decay {}",
    "N_c": "N_c={}",
    "gamma": "γ={}",
    "K": "K={}",
    "J": "J={}",
}
"""How sentences name a value; for axes that are not listed, by key and value."""

VALUES = {
    ("algorithm.momentum", "keep"): "momentum kept",
    ("algorithm.momentum", "reset"): "momentum reset",
    ("algorithm.momentum", "average"): "momentum averaged",
    ("speeds", "stragglers"): "stragglers",
    ("speeds", "linear"): "linearly spread speeds",
    ("local_steps", "fixed"): "a fixed J",
}
"""Values that do not follow the phrase of their axis."""

ABSENT = {"N_c": "iid shards", "gamma": "uniform participation"}

DATA = {
    "digits": "scikit-learn's 1,797 handwritten digits",
    "mnist": "MNIST",
    "emnist": "EMNIST",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "tiny_imagenet": "Tiny-ImageNet",
    **dict.fromkeys(("folder", "npz", "arrow"), "images of our own"),
    "shakespeare": "Shakespeare (next character)",
    "shakespeare_sequences": "Shakespeare (sequences of characters)",
}

MODELS = {
    "small": "a small convolutional network",
    "lenet": "the convolutional network of Hsu et al. (2020)",
    "lstm": "the two-layer LSTM of Reddi et al. (2021)",
    "lenet_bn": "that network with BatchNorm",
    "lenet_gn": "that network with GroupNorm",
    "lenet_ln": "that network with LayerNorm",
    "resnet20": "ResNet-20 of He et al. (2016)",
    "resnet20_gn": "ResNet-20 with GroupNorm",
    "vit": "a small vision transformer (Dosovitskiy et al., 2021)",
    "convnext": "a network of the blocks of Liu et al. (2022)",
    "convmixer": "ConvMixer of Trockman and Kolter (2023)",
}

TEXTS = ("shakespeare", "shakespeare_sequences")

HELD_OUT = dict.fromkeys(TEXTS, "the last part of each role's training text")
"""What is held out of the training set for validation, if it is not a fraction of each class."""

DIVISIONS = {
    "iid": "iid: a random permutation, cut into parts of equal size (±1)",
    "classes": "by N_c: each client holds exactly N_c classes, disjoint and of equal size where that is possible",
    "natural": "natural: a client is a role of the plays",
    "dirichlet": "Dirichlet: class proportions of each client are drawn (Hsu et al., 2019)",
    "dirichlet_classes": "Dirichlet by class: each class is divided among clients in drawn proportions",
    "quantity": "by quantity: random parts of unequal, drawn sizes",
}
"""How samples are divided among workers or clients."""


def judged_on(configurations: Sequence[Mapping[str, Any]]) -> str:
    """On which samples these runs judge clients' own models."""
    return ", or on ".join(dict.fromkeys(map(_judged_on, configurations)))


def _judged_on(config: Mapping[str, Any]) -> str:
    if config.get("personal") == "shards":
        return f"{100 * config['shard_part']:g} % of its shard, withheld from training, half of it for validation and half for test"
    if config["dataset"]["name"] in TEXTS:
        return (
            "its own validation and test text" if config["sharding"]["name"] == "natural" else "its share of the validation and test text"
        )
    return "the validation and test images dealt to it, of each class in proportion to its training images"


def column(of: Axis) -> str:
    """The header of an axis's column."""
    short = COLUMNS.get(of.name, of.title)
    return short if short != of.name or of.name in COLUMNS else spelled(of.name)


def phrase(of: Axis, value: Value) -> str:
    """A value as named in a sentence."""
    if value is None and of.name in ABSENT:
        return ABSENT[of.name]
    if (of.name, value) in VALUES:
        return VALUES[of.name, str(value)]
    if of.name == "N_c" and isinstance(value, str):
        return PHRASES["sharding"].format(of.text(value))
    if of.name in ("method", "optimizer", "dataset"):
        return of.text(value)
    return PHRASES[of.name].format(of.text(value)) if of.name in PHRASES else f"{spelled(of.name)} {of.text(value)}"


def spelled(key: str) -> str:
    """A key without its group and underscores, as words."""
    return AXES[key].title if key in AXES and AXES[key].title != key else key.rpartition(".")[2].replace("_", " ")


def setting_name(results: Results, setting: Setting, but: Sequence[str] = ()) -> str:
    """A setting as a sentence names it: `LocalSGD with K=2 and J=4`, by what distinguishes it, except the axes `but`."""
    axes = results.axes
    names = [each.name for each in axes]
    head = setting.method
    if head == "Centralized" and "method" not in names:
        head = AXES["optimizer"].text(AXES["optimizer"].of(setting.config)) if "optimizer" in names else "centralized training"
    data = f" on {AXES['dataset'].text(setting.value('dataset'))}" if "dataset" in names else ""
    told = [each for each in axes if each.name not in ("dataset", *but) and (each.name != "local_steps" or head == "LocalSGD")]
    rest = [said for each in told if (said := phrase(each, each.of(setting.config))) != head]
    return head + data + (f" with {listed(rest)}" if rest else "")


def plain_name(section: str) -> str:
    """The name of a section without its size."""
    return re.sub("-(smoke|short)$", "", section)


def listed(words: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def capital(text: str) -> str:
    """A text with its first letter capitalised."""
    return text[:1].upper() + text[1:]


def bare(of: Measure) -> str:
    """A measure's title without its unit."""
    return of.title.rpartition(", ")[0] or of.title


def figure(statistic: Statistic, of: Measure) -> tuple[str, str | None]:
    """The mean, and the deviation over seeds, in the common format: with the measure's digits, counts and costs with three.

    The deviation is None for one seed, and if all seeds have the same count or cost.
    """
    deviation = statistic.deviation
    if of.better:
        return f"{statistic.mean:.{of.digits}f}", None if deviation is None else f"{deviation:.{of.digits}f}"
    mean = statistic.mean
    decimals = 0 if mean == int(mean) else max(0, 2 - math.floor(math.log10(abs(mean))))
    same = deviation is None or deviation <= 1e-9 * abs(mean)
    return f"{mean:.{decimals}f}", None if same else f"{deviation:.{decimals}f}"
