"""One run, or two beside each other."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from fl_hydra.files import read_file
from fl_hydra.runs.failure import ERROR
from fl_hydra.runs.folder import ENVIRONMENT, METRICS
from fl_hydra.runs.identity import by_key
from fl_hydra.runs.listing import listed, shown
from fl_hydra.runs.reading import Run, read_run
from fl_hydra.runs.standing import in_bytes, in_words, is_written, part_seen, resumed_round, rows, seconds_spent, size


def show(folder: Path, outputs: Path) -> None:
    """Print what is known of a run: how it ended, its last row, its configuration, where and how long it was trained."""
    run = read_run(folder)
    homes: list[str] = next((each.facts["section"] for each in listed(outputs) if each.run.folder.resolve() == folder.resolve()), [])
    print(folder)
    _print_pairs(_about(run, homes))
    if last := _last_row(run):
        print("\nlast row of metrics")
        _print_pairs({key: _figure(value) for key, value in last.items()})
    if run.config:
        print("\nconfiguration")
        _print_pairs({key: shown(value) for key, value in by_key(run.config).items()})
    if environment := _environment(folder):
        print("\ntrained with")
        _print_pairs({key: shown(value) for key, value in environment.items()})


def compare(first: Path, second: Path) -> None:
    """Print in which keys two runs differ, and in which results."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    runs = [read_run(folder) for folder in (first, second)]
    console = Console(width=140)
    configs = [by_key(run.config) for run in runs]
    keys = [key for key in {**configs[0], **configs[1]} if configs[0].get(key, "") != configs[1].get(key, "")]
    table = Table("key", *(run.folder.name for run in runs))
    for key in keys:
        table.add_row(key, *(Text(shown(config[key]) if key in config else "") for config in configs))
    print(f"{len(keys)} keys differ" if keys else "no key differs: this is the same run")
    if keys:
        console.print(table)
    results = [_results(run) for run in runs]
    table = Table("result", *(run.folder.name for run in runs), "difference", "ratio")
    same = []
    for key in {**results[0], **results[1]}:
        one, other = (result.get(key) for result in results)
        if one == other:
            same.append(key)
            continue
        difference = ratio = ""
        if isinstance(one, int | float) and isinstance(other, int | float):
            difference, ratio = _figure(other - one), f"{other / one:.4g}" if one else ""
        table.add_row(key, _figure(one), _figure(other), difference, ratio)
    console.print(table)
    if same:
        print(f"equal: {', '.join(same)}")


def _about(run: Run, homes: Sequence[str]) -> dict[str, str]:
    folder = run.folder
    running = run.status == "unfinished" and is_written(folder)
    status = "running" if running else run.status
    if run.status == "unfinished" and run.config:
        status += f", {part_seen(folder, run.config):.0%} done" + ("" if running else f", to continue from round {resumed_round(folder)}")
    about = {"status": status, **({"why": run.why} if run.why and not running else {})}
    if (folder / ERROR).exists():
        about["failed"] = f"see {folder / ERROR}"
    about |= {"sections": ", ".join(homes)} if homes else {}
    return {**about, "trained for": in_words(seconds_spent(folder)), "holds": in_bytes(size(folder))}


def _last_row(run: Run) -> dict[str, Any]:
    last = (run.rows or rows(run.folder / METRICS) or [{}])[-1]
    return {name: value for name, value in last.items() if not isinstance(value, list)}  # those by client are too long to be read


def _results(run: Run) -> dict[str, Any]:
    environment = _environment(run.folder)
    where: dict[str, Any] = {key: environment[key] for key in ("engine", "device", "threads", "torch", "machine") if key in environment}
    return {"status": run.status, **_last_row(run), "trained for (s)": round(seconds_spent(run.folder), 1), **where}


def _environment(folder: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError, TypeError):
        return dict(json.loads(read_file(folder / ENVIRONMENT)))
    return {}


def _figure(value: Any) -> str:
    if isinstance(value, list):  # by client
        there = [each for each in value if each is not None]
        return f"{len(value)} clients, from {min(there):.6g} to {max(there):.6g}" if there else f"{len(value)} clients"
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else shown(value)


def _print_pairs(pairs: dict[str, str]) -> None:
    width = max(map(len, pairs), default=0)
    for key, value in pairs.items():
        print(f"  {key:<{width}}  {value}")
