"""The commands that are harmed: every algorithm, what keeps state of its own, and packs; each takes a fraction of a second."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.support.make import PROJECT

TINY = ("model.filters=2", "model.hidden=12", "evaluation.points=3", "checkpoint.seconds=0", "threads=1", "section=chaos")


@dataclass(frozen=True)
class Setting:
    """A command.

    points: of a pack, what sets its members apart, each as it would be given alone.
    """

    name: str
    words: tuple[str, ...]
    points: tuple[tuple[str, ...], ...] = ()

    @property
    def pack(self) -> bool:
        return bool(self.points)

    def command(self, outputs: Path, *more: str) -> tuple[str, ...]:
        """The command; `more` words replace those of the same key."""
        keys = {word.partition("=")[0] for word in more}
        words = (word for word in (*self.words, *TINY) if word.partition("=")[0] not in keys)
        return (*words, *more, f"outputs={outputs}")

    def alone(self, point: tuple[str, ...], outputs: Path) -> tuple[str, ...]:
        """The command of one member of a pack."""
        return Setting("", tuple(word for word in self.words if word != "-m" and "launcher" not in word)).command(outputs, *point)

    @property
    def shorter(self) -> tuple[str, ...]:
        """The words that make it the same run with a smaller budget."""
        return ("rounds=3",) if "rounds=7" in self.words else ("samples=500",)


CLIENTS = ("algorithm=fedavg", "K=10", "C=0.3", "J=3", "batch_size=16", "rounds=7")
WORKERS = ("algorithm=localsgd", "K=3", "J=3", "batch_size=16", "rounds=7")

PARTICULAR: dict[str, tuple[str, ...]] = {
    "centralized": ("batch_size=64", "rounds=7"),
    "fedavg": CLIENTS[1:],
    "localsgd": ("optimizer=adamw", *WORKERS[1:]),
    "gossip_aga": ("K=4", "J=3", "batch_size=16", "samples=1501"),
    "post_local": ("K=4", "J=3", "batch_size=16", "samples=1501"),
}
"""By algorithm, where it takes other words than :data:`USUAL`."""
USUAL = ("K=4", "J=3", "batch_size=16", "rounds=7")

VARIANTS = (
    Setting("a budget that cuts a batch", (*WORKERS[:-1], "optimizer=sgdm", "samples=1007")),
    Setting("fedavg, oort", (*CLIENTS, "participation=oort", "speeds=linear")),
    Setting("fedavg, power of choice", (*CLIENTS, "participation=power_of_choice", "participation.dropout=0.2")),
    Setting("fedavg, server=adam", (*CLIENTS, "server=adam")),
    Setting("fedavg, classes", (*CLIENTS, "sharding=classes", "N_c=2", "scheduler=cosine")),
    Setting("fedavg, engine=loop", (*CLIENTS, "engine=loop")),
    Setting("localsgd, lamb", (*WORKERS, "optimizer=lamb")),
    Setting("localsgd, drift", (*WORKERS[:-1], "local_steps=drift", "samples=1501")),
)


def _pack(name: str, words: tuple[str, ...], points: tuple[tuple[str, ...], ...]) -> Setting:
    """A grid over the values that the points have."""
    values: dict[str, list[str]] = {}
    for point in points:
        for word in point:
            key, _, value = word.partition("=")
            if value not in values.setdefault(key, []):
                values[key].append(value)
    keys = set(values)
    kept = tuple(word for word in words if word.partition("=")[0] not in keys)
    return Setting(
        f"pack of {name}", ("-m", "hydra/launcher=packed", *kept, *(f"{key}={','.join(v)}" for key, v in values.items())), points
    )


def _grid(*axes: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    points: tuple[tuple[str, ...], ...] = ((),)
    for axis in axes:
        points = tuple((*point, word) for point in points for word in axis)
    return points


SEEDS = ("seed=0", "seed=1", "seed=2")
PACKS = (
    _pack("localsgd that ends at different times", (*WORKERS, "optimizer=adamw"), _grid(("rounds=4", "rounds=7"))),
    _pack("fedavg that ends at different times", CLIENTS, _grid(("rounds=3", "rounds=5", "rounds=7"))),
    _pack("localsgd", (*WORKERS, "optimizer=adamw"), _grid(SEEDS)),
    _pack("slowmo", ("algorithm=slowmo", *USUAL), _grid(("optimizer.lr=0.01", "optimizer.lr=0.05"))),
    _pack("localsgd, two shapes", WORKERS, _grid(("J=2", "J=3"), SEEDS[:2])),
    _pack("localsgd, cut batches", WORKERS[:-1], _grid(("samples=1007", "samples=700", "samples=400"))),
    _pack("fedavg, engine=loop", (*CLIENTS, "engine=loop"), _grid(SEEDS)),
    _pack("gossip", ("algorithm=gossip", *USUAL), _grid(SEEDS)),
    _pack("centralized", ("algorithm=centralized", "batch_size=64"), _grid(("rounds=4", "rounds=6"), ("optimizer.lr=0.05",))),
    _pack("fedavg, server=adam", (*CLIENTS, "server=adam"), _grid(("server.lr=0.1", "server.lr=0.01"))),
)


def methods(pattern: str = "*") -> tuple[Setting, ...]:
    """One for each algorithm there is, or of a name."""
    names = sorted(path.stem for path in (PROJECT / "conf" / "algorithm").glob(f"{pattern}.yaml"))
    return tuple(Setting(name, (f"algorithm={name}", *PARTICULAR.get(name, USUAL))) for name in names)


def lone(few: bool) -> tuple[Setting, ...]:
    """Single runs; a few of them for the short form."""
    everything = (*methods(), *VARIANTS)
    return tuple(setting for setting in everything if setting.name in ("localsgd", "fedavg")) if few else everything


def packs(few: bool) -> tuple[Setting, ...]:
    """Packs; a few of them for the short form."""
    return PACKS[:1] if few else PACKS
