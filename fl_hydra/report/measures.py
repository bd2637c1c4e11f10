"""Measures of a run in figures and tables: a figure of each row of its metrics, or a cost computed from the row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fl_hydra.errors import require
from fl_hydra.report.cost import CostTable, Ledger, Network, computing_seconds, read_ledger, wall_clock, wire_bytes

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


def measures(table: CostTable) -> dict[str, Measure]:
    """Measures by name, with the costs on the networks of a table, for its first device. `bytes`: of all messages, divided
    by the workers or clients; messages to and from a server both count, one between two workers counts once.
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
        Measure("round", "rounds", _column("round"), digits=0),
        Measure("epoch", "epochs", _column("epoch"), digits=1),
        Measure("samples", "training samples", _column("samples"), digits=0),
        Measure("lr", "learning rate", _column("lr"), digits=4),
        Measure("J", "local steps J", _local_steps, digits=1),
        Measure("noise_scale", "gradient noise scale, samples", _column("noise_scale"), digits=0),
        Measure("messages", "messages", _column("messages"), digits=0),
        Measure("flops", "computation, GFLOP", _column("flops", 1e-9), digits=1),
        Measure("payload", "payload per worker, MB", _cost(lambda ledger: ledger.payload / ledger.workers / 1e6)),
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
