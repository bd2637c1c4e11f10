"""Runs as the report sees them: grouped over seeds."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fl_hydra.runs.identity import by_key
from fl_hydra.runs.reading import Run, read_run

__all__ = ["Run", "by_setting", "not_in_means", "read_run", "state"]


def not_in_means(runs: Sequence[Run]) -> list[str]:
    """A line for each run whose figures are in no mean: its folder, and why."""
    return [f"{run.folder}: {run.status}{f' ({run.why})' if run.why else ''}" for run in runs if not run.finished]


def told_from(folders: Sequence[Path], outputs: Path) -> tuple[list[Path], int]:
    """The folders in a section's list that can be a run's, and the number of others."""
    names = [folder.relative_to(outputs).parts if folder.is_relative_to(outputs) else () for folder in folders]
    kept = [
        folder
        for folder, parts in zip(folders, names, strict=True)
        if len(parts) == 3 and ".." not in parts and re.search(r"-[0-9a-f]{10}$", parts[2])
    ]
    return kept, len(folders) - len(kept)


def state(runs: Sequence[Run]) -> str:
    """The status of a setting's runs: `finished`, or how many have finished and the status of the others."""
    numbers = Counter(run.status for run in runs)
    if numbers["finished"] == len(runs):
        return "finished"
    ended = numbers["finished"] + numbers["diverged"]
    first = f"{numbers['finished']} of {len(runs)} finished" if ended else f"0 of {len(runs)} ended"
    others = [f"{numbers[status]} {status}" for status in ("diverged", "unfinished", "damaged", "missing") if numbers[status]]
    return ", ".join([first, *others])


def by_setting(runs: Sequence[Run]) -> list[tuple[str, list[Run]]]:
    """Groups of runs that differ only in the seed, with a label; runs without a known configuration are left out.

    If settings share a label, their other differences are added to it.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        if not run.config:
            continue
        setting = {key: value for key, value in run.config.items() if key != "seed"}
        groups.setdefault(json.dumps(setting, sort_keys=True), []).append(run)
    labelled = []
    for group in groups.values():
        alike = [by_key(other[0].config) for other in groups.values() if other[0].label == group[0].label]
        labelled.append((", ".join([group[0].label, *_differences(by_key(group[0].config), alike)]), group))
    return labelled


def _differences(mine: dict[str, Any], others: list[dict[str, Any]]) -> list[str]:
    """`key=value` for each difference of a configuration from others; if a whole part differs, only its name."""
    differences = []
    for key, value in mine.items():
        part, _, field = key.rpartition(".")
        name = f"{part}.name"
        comparable = others if field == "name" else [other for other in others if other.get(name) == mine.get(name)]
        if key != "seed" and any(other.get(key) != value for other in comparable):
            differences.append(f"{part if field == 'name' else key}={value}")
    return differences
