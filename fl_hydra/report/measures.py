"""Measures of a run in figures and tables: a figure of each row of its metrics, or a cost computed from the row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fl_hydra.errors import require
from fl_hydra.participation.held_out import left_of
from fl_hydra.report.cost import CostTable, Ledger, Network, computing_seconds, read_ledger, wall_clock, wire_bytes
from fl_hydra.uplinks.accountant import epsilon, usual_delta

Row = Mapping[str, Any]
Configuration = Mapping[str, Any]


@dataclass(frozen=True)
class Measure:
    """One figure of a row of metrics.

    title: with its unit, as on an axis. of: its value, from the row and the run's configuration; None if there is none. better: `max`,
    `min` or empty. digits: decimals in a table.
    """

    name: str
    title: str
    of: Callable[[Row, Configuration], float | None]
    better: str = ""
    digits: int = 2

    @property
    def unit(self) -> str:
        """The unit in the title, or an empty string."""
        return self.title.rpartition(", ")[2] if ", " in self.title else ""


def _column(name: str, scale: float = 1.0) -> Callable[[Row, Configuration], float | None]:
    def of(row: Row, _: Configuration) -> float | None:
        value = row.get(name)
        return None if value is None else float(value) * scale

    return of


def _local_steps(row: Row, config: Configuration) -> float | None:
    """The last round's J if a rule chooses it, else the configured one."""
    value = row.get("J", config.get("J"))
    return None if value is None else float(value)


def _cost(cost: Callable[[Ledger], float]) -> Callable[[Row, Configuration], float | None]:
    def of(row: Row, config: Configuration) -> float | None:
        ledger = read_ledger(row, config)
        return None if ledger is None else cost(ledger)

    return of


def _personal() -> list[Measure]:
    """Figures of models of clients, each on samples of its own."""
    found = []
    for part, word in (("val", "validation"), ("test", "test")):
        accuracy, prefix = f"personal {word} accuracy", f"personal/{part}"
        found += [
            Measure(f"{prefix}/loss", f"personal {word} loss", _column(f"{prefix}/loss"), "min", 4),
            Measure(f"{prefix}/acc", f"{accuracy}, %", _column(f"{prefix}/acc", 100), "max"),
            Measure(f"{prefix}/acc_weighted", f"{accuracy} by samples, %", _column(f"{prefix}/acc_weighted", 100), "max"),
            Measure(
                f"{prefix}/acc_worst_tenth", f"{word} accuracy of the worst tenth, %", _column(f"{prefix}/acc_worst_tenth", 100), "max"
            ),
            Measure(
                f"{prefix}/acc_deviation", f"deviation of {word} accuracy over clients, %", _column(f"{prefix}/acc_deviation", 100), "min"
            ),
            Measure(f"{prefix}/acc_held_out", f"{word} accuracy of clients held out, %", _column(f"{prefix}/acc_held_out", 100), "max"),
        ]
    return found


def validation(of: Measure, table: CostTable) -> Measure:
    """The validation figure by which the best of a figure is chosen: a loss by a loss; one of clients' models by the same one of theirs."""
    whose, _, figure = of.name.rpartition("/")
    if whose.startswith("personal/"):
        return measure(f"personal/val/{figure}", table)
    return measure(f"val/{'loss' if figure == 'loss' else 'acc'}", table)


def _uploads(row: Row, config: Configuration) -> float:
    workers: int = max(config["K"], config.get("data_parallel", 1))
    return float(row["bytes_up"]) / workers


def delta_of(config: Configuration, table: CostTable) -> float | None:
    """The delta at which epsilon of a run is stated; None if it hides nobody."""
    uplink = config.get("uplink", {})
    if uplink.get("name") != "dp" or not uplink["noise_multiplier"]:
        return None
    return usual_delta(clients_of(config)) if table.delta is None else table.delta


def clients_of(config: Configuration) -> int:
    """How many clients may be drawn: all that are not held out."""
    return left_of(config["K"], config["participation"].get("held_out"))


def privacy(table: CostTable) -> Measure:
    """Epsilon of private runs, which takes half a second for each number of rounds, so that it is only in tables of final models."""

    def of(row: Row, config: Configuration) -> float | None:
        delta = delta_of(config, table)
        if delta is None:
            return None
        return epsilon(clients_of(config), config["m"], config["uplink"]["noise_multiplier"], row["round"], delta)

    return Measure("epsilon", "epsilon", of)


def measures(table: CostTable) -> dict[str, Measure]:
    """Measures by name, with the costs on the networks of a table, for its first device. `bytes`: of all messages, divided
    by the workers or clients; messages to and from a server both count, one between two workers counts once. `flops` are those of workers
    or clients, without `server_flops`.
    """
    device = table.devices[0]
    parts = {"train": "training", "val": "validation", "test": "test"}
    losses = [Measure(f"{part}/loss", f"{word} loss", _column(f"{part}/loss"), "min", 4) for part, word in parts.items()]
    accuracies = [Measure(f"{part}/acc", f"{word} accuracy, %", _column(f"{part}/acc", 100), "max") for part, word in parts.items()]

    def on(network: Network) -> Measure:
        return Measure(
            network.name, f"time on {network.name}, s", _cost(lambda ledger: wall_clock(ledger, network, device, table.collective))
        )

    found = [
        *losses,
        *accuracies,
        *_personal(),
        Measure("round", "rounds", _column("round"), digits=0),
        Measure("epoch", "epochs", _column("epoch"), digits=1),
        Measure("samples", "training samples", _column("samples"), digits=0),
        Measure("lr", "learning rate", _column("lr"), digits=4),
        Measure("J", "local steps J", _local_steps, digits=1),
        Measure("noise_scale", "gradient noise scale, samples", _column("noise_scale"), digits=0),
        Measure("messages", "messages", _column("messages"), digits=0),
        Measure("flops", "computation, GFLOP", _column("flops", 1e-9), digits=1),
        Measure("server_flops", "computation of the server, GFLOP", _column("server_flops", 1e-9), digits=1),
        Measure("payload", "payload per worker, MB", _cost(lambda ledger: ledger.payload / ledger.workers / 1e6)),
        Measure("up", "uploads per worker, MB", lambda row, config: _uploads(row, config) / 1e6),
        Measure("bytes", "communication per worker, MB", _cost(lambda ledger: wire_bytes(ledger, table.collective) / ledger.workers / 1e6)),
        Measure("seconds", "simulated time, s", _cost(lambda ledger: computing_seconds(ledger, device) + ledger.delay)),
        *map(on, table.networks),
    ]
    return {each.name: each for each in found}


def measure(name: str, table: CostTable) -> Measure:
    """A measure by its name.

    Raises:
        UserError: there is none of this name.
    """
    known = measures(table)
    require(name in known, f"{name}: no such figure of a run; choose from {', '.join(known)}")
    return known[name]
