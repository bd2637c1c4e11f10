"""Runs as the report sees them: read from their folders, grouped over seeds."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_hydra.errors import UserError

METHODS = {"centralized": "Centralized", "localsgd": "LocalSGD", "fedavg": "FedAvg"}


@dataclass(frozen=True)
class Run:
    """A run that has ended.

    config: the resolved configuration. rows: of metrics.jsonl. status: `finished` or `diverged`.
    """

    folder: Path
    config: dict[str, Any]
    rows: list[dict[str, Any]]
    status: str

    @property
    def label(self) -> str:
        """The setting in the field's letters, without the seed."""
        c = self.config
        name = METHODS.get(c["algorithm"]["name"], c["algorithm"]["name"])
        if c["K"] == 1:
            return f"{name}, batch {c['batch_size']}"
        cohort = f" C={c['m'] / c['K']:g}" if c["m"] != c["K"] else ""
        skew = f", N_c={c['N_c']}" if c["N_c"] is not None else f", {c['sharding']['name']}"
        return f"{name} K={c['K']}{cohort} J={c['J']}{skew}"

    def column(self, name: str) -> list[float | None]:
        """One figure of every row."""
        return [row[name] for row in self.rows]


def read_run(folder: Path) -> Run | None:
    """A run from its folder; None if it has not ended."""
    try:
        summary = json.loads((folder / "summary.json").read_text())
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return Run(folder, summary["config"], rows, summary["status"]) if rows else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs that have ended.

    Raises:
        UserError: none has.
    """
    runs = [run for folder in folders if (run := read_run(folder)) is not None]
    if not runs:
        raise UserError("none of these runs has ended; train them first")
    return runs


def by_setting(runs: Sequence[Run]) -> list[tuple[str, list[Run]]]:
    """Runs that differ in nothing but the seed, together, with a label.

    Where settings share a label, what else they differ in is added to it.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        setting = {key: value for key, value in run.config.items() if key != "seed"}
        groups.setdefault(json.dumps(setting, sort_keys=True), []).append(run)
    labelled = []
    for group in groups.values():
        alike = [other[0] for other in groups.values() if other[0].label == group[0].label]
        mine, others = _flat(group[0].config), [_flat(run.config) for run in alike]
        differing = [key for key in mine if key != "seed" and any(other.get(key) != mine[key] for other in others)]
        labelled.append((", ".join([group[0].label, *(f"{key}={mine[key]}" for key in differing)]), group))
    return labelled


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def mean_and_deviation(values: Sequence[float | None], scale: float = 1.0, digits: int = 2) -> str:
    """`mean ± standard deviation` over seeds; the figure alone for one seed; nothing where a value is missing."""
    present = [value * scale for value in values if value is not None]
    if not present or len(present) < len(values):
        return ""
    mean = f"{statistics.fmean(present):.{digits}f}"
    return mean if len(present) == 1 else f"{mean} ± {statistics.stdev(present):.{digits}f}"
