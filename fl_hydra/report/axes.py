"""Axes of settings, such as K or the optimizer, by which figures and tables are ordered; read from a run's configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fl_hydra.runs.identity import by_key
from fl_hydra.runs.reading import inner_optimizer, method_of, model_of, outer_optimizer

Value = str | int | float | bool | None
Configuration = Mapping[str, Any]


@dataclass(frozen=True)
class Axis:
    """An axis of settings.

    title: its label in figures. of: its value in a configuration; None if it has no effect. absent: how None is written, such as `iid`
    for the classes of a client. log: whether its scale is logarithmic.
    """

    name: str
    title: str
    of: Callable[[Configuration], Value]
    absent: str = "none"
    log: bool = False

    def text(self, value: Value) -> str:
        """A value as a label by itself, `iid` or `0.01`."""
        if value is None:
            return self.absent
        if isinstance(value, bool):
            return "yes" if value else "no"
        return TITLES.get(value, value) if isinstance(value, str) else f"{value:g}"

    def label(self, value: Value) -> str:
        """A value in a legend: `K=4`, but `SGDM`."""
        plain = isinstance(value, str) or (value is None and self.absent != "none")
        return self.text(value) if plain else f"{self.name.rpartition('.')[2]}={self.text(value)}"


TITLES = {
    "sgd": "SGD",
    "sgdm": "SGDM",
    "adam": "Adam",
    "adamw": "AdamW",
    "lars": "LARS",
    "lamb": "LAMB",
    "slowmo": "SlowMo",
    "nesterov": "Nesterov",
    "digits": "Digits",
    "mnist": "MNIST",
    "emnist": "EMNIST",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "tiny_imagenet": "Tiny-ImageNet",
    "shakespeare": "Shakespeare",
    "iid": "iid",
    "dirichlet": "Dirichlet",
    "post_local": "post-local",
    "lenet": "LeNet",
    "lenet_bn": "LeNet BN",
    "lenet_gn": "LeNet GN",
    "lenet_ln": "LeNet LN",
    "resnet20": "ResNet-20 BN",
    "resnet20_gn": "ResNet-20 GN",
    "vit": "ViT",
    "convnext": "ConvNeXt",
    "convmixer": "ConvMixer",
}
"""Names of options in figures and tables; others appear as typed."""


def _scheduler(config: Configuration) -> str:
    """The option's name, or that of its variant: large_batch_cosine is cosine, scaled with the batch size and warmed up."""
    scheduler = config["scheduler"]
    return f"scaled {scheduler['name']}" if scheduler.get("scale_batch", "none") != "none" else str(scheduler["name"])


def _uplink(config: Configuration) -> Value:
    """What is sent of a vector: the option, and how much of it."""
    uplink = config.get("uplink", {})
    match name := uplink.get("name", "none"):
        case "topk" | "randomk":
            return f"{name} {uplink['fraction']:g}"
        case "qsgd":
            return f"qsgd {(2 * uplink['levels']).bit_length()} bits"
    return str(name)


def _part(group: str) -> Callable[[Configuration], Value]:
    return lambda config: config.get(group, {}).get("name")


def _key(key: str) -> Callable[[Configuration], Value]:
    return lambda config: by_key(dict(config)).get(key)


def _division(config: Configuration) -> Value:
    """Classes per client if given, None for iid, else the option's name."""
    name = _part("sharding")(config)
    return _key("N_c")(config) or (None if name == "iid" else name)


AXES: Mapping[str, Axis] = {
    axis.name: axis
    for axis in (
        Axis("method", "method", lambda config: method_of(config)[0]),
        Axis("dataset", "data", _part("dataset")),
        Axis("model", "model", lambda config: model_of(config.get("model", {}))),
        Axis("optimizer", "optimizer", lambda config: inner_optimizer(config["optimizer"])),
        Axis("server", "outer optimizer", lambda config: outer_optimizer(config.get("server", {}))),
        Axis("scheduler", "schedule", _scheduler),
        Axis("sharding", "division of the data", _part("sharding")),
        Axis("participation", "participation", _part("participation")),
        Axis("speeds", "speeds of the workers", _part("speeds")),
        Axis("local_steps", "rule for J", _part("local_steps")),
        Axis("uplink", "uplink", _uplink),
        Axis("algorithm.topology", "topology", _key("algorithm.topology")),
        Axis("algorithm.momentum", "momentum after averages", _key("algorithm.momentum")),
        Axis("K", "number of clients or workers K", _key("K"), log=True),
        Axis("J", "local steps J", _key("J"), log=True),
        Axis("N_c", "classes per client N_c", _division, absent="iid", log=True),
        Axis("gamma", "concentration of participation γ", _key("gamma"), absent="uniform", log=True),
        Axis("batch_size", "batch size", _key("batch_size"), log=True),
        Axis("optimizer.lr", "learning rate", _key("optimizer.lr"), log=True),
        Axis("server.lr", "outer learning rate", _key("server.lr"), log=True),
        Axis("uplink.fraction", "part of the entries that is sent", _key("uplink.fraction"), absent="all", log=True),
        Axis("optimizer.weight_decay", "weight decay", _key("optimizer.weight_decay"), log=True),
    )
}
"""Axes with titles of their own. Any other key of a configuration is an axis too."""


DIVISION = Axis("N_c", "division of the data", _division, absent="iid")
"""The same as N_c, for figures in which it is not a number of classes alone."""


def axis(name: str) -> Axis:
    """An axis by its name: one of :data:`AXES`, `division`, or any key as it is typed."""
    return DIVISION if name == "division" else AXES.get(name) or Axis(name, name, _key(name))


def varying(configurations: Sequence[Configuration]) -> list[Axis]:
    """The axes on which some configurations differ, those with titles first, each difference once.

    The keys behind a titled axis do not repeat it: if each optimizer has its own rate, the rate is not an axis besides the optimizer.
    """
    told = [each for each in AXES.values() if len({each.of(config) for config in configurations}) > 1]
    groups: dict[tuple[Value, ...], list[dict[str, Any]]] = {}
    for config in configurations:
        groups.setdefault(tuple(each.of(config) for each in told), []).append(by_key(dict(config)))
    keys = dict.fromkeys(key for group in groups.values() for held in group for key in held if key not in ("seed", *AXES))
    left = [key for key in keys if any(len({repr(held.get(key)) for held in group}) > 1 for group in groups.values())]
    return _needed(told, configurations) + [axis(key) for key in left]


def _needed(axes: list[Axis], configurations: Sequence[Configuration]) -> list[Axis]:
    """Axes without those that another axis determines, as N_c says what is iid, or method, data and their division together, as each
    method's rate for images and for text; of two equivalent axes, the first.
    """

    def follows(one: Axis, *others: Axis) -> bool:
        pairs = {(tuple(other.of(config) for other in others), one.of(config)) for config in configurations}
        return len(pairs) == len({values for values, _ in pairs})

    left = list(axes)
    for each in reversed(axes):
        others = [other for other in left if other is not each]
        if any(follows(each, other) and (not follows(other, each) or axes.index(other) < axes.index(each)) for other in others):
            left.remove(each)
    named = [each for each in left if each.name in ("method", "dataset", "N_c")]
    return [each for each in left if each in named or len(named) < 2 or not follows(each, *named)]


def in_order(values: Sequence[Value]) -> list[Value]:
    """Distinct values of an axis: numbers in ascending order, None last, names in order of appearance."""
    different = list(dict.fromkeys(values))
    numbers = sorted(value for value in different if isinstance(value, int | float))
    return [*numbers, *(value for value in different if isinstance(value, str)), *([None] if None in different else [])]
