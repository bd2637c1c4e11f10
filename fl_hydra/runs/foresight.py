"""What a command would train, how long that takes here and how much disk it needs: `dry_run=true`. Nothing is written."""

from __future__ import annotations

import json
import shutil
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_hydra.config import Config
from fl_hydra.files import read_file
from fl_hydra.runs.conditions import machine
from fl_hydra.runs.ended import known_outcome
from fl_hydra.runs.folder import ENVIRONMENT, run_folders
from fl_hydra.runs.identity import describe, run_folder
from fl_hydra.runs.reading import read_run
from fl_hydra.runs.standing import in_bytes, in_words, is_written, part_kept, resumed_round, seconds_per_sample, size
from fl_hydra.training.experiment import Experiment

MOST_TIMED = 60.0
"""Seconds after which no further setting is timed."""
NAMED = 5
"""The most runs to continue that are named."""


@dataclass(frozen=True)
class Planned:
    """A requested run.

    label: what sets it apart. status: `to train`, `to resume`, `being trained` by another process, or how it has ended. part: of its
    budget that is done.
    """

    config: Config
    experiment: Experiment
    label: str
    status: str
    part: float

    @property
    def left(self) -> float:
        """The part of its budget that is to be trained."""
        return max(0.0, (self.config.until or 1.0) - self.part) if self.status in ("to train", "to resume") else 0.0


@dataclass(frozen=True)
class Cost:
    """The cost of a setting.

    sample, evaluation: seconds. disk: bytes of a run. source: runs of equal settings that were `trained` here, rounds that were `timed`
    now, or `alike`: other settings that were timed.
    """

    sample: float
    evaluation: float
    disk: float
    source: str

    def seconds(self, run: Planned) -> float:
        """Seconds to train what is left of a run."""
        e = run.experiment
        evaluations = min(e.points, e.rounds or e.points)
        return run.left * (self.sample * e.budget + self.evaluation * evaluations)


def plan(points: Sequence[tuple[Config, Experiment]], labels: Sequence[str]) -> list[Planned]:
    """What remains to be done for each distinct run of some points."""
    planned: dict[Path, Planned] = {}
    for (config, experiment), label in zip(points, labels, strict=True):
        outputs = Path(config.outputs)
        folder = run_folder(experiment, outputs)
        if folder in planned:
            continue
        found = known_outcome(experiment, outputs, lambda line: None)
        part = 0.0
        if found is not None:
            status = found.status
        elif is_written(folder):
            status = "being trained"
        else:
            part = part_kept(folder, describe(experiment))
            status = "to resume" if resumed_round(folder) else "to train"
        planned[folder] = Planned(config, experiment, label, status, part)
    return list(planned.values())


def foresee(points: Sequence[tuple[Config, Experiment]], labels: Sequence[str]) -> None:
    """Print what a run, or a grid, would do."""
    runs = plan(points, labels)
    numbers = Counter(run.status for run in runs)
    order = ("finished", "diverged", "paused", "failed", "being trained", "to resume", "to train")
    counted = ", ".join(f"{numbers[status]} {status}" for status in order if numbers[status])
    many = f"{len(points)} points, {len(runs)} runs" if len(points) > 1 else "1 run"
    print(f"dry run: {many}: {counted}")
    resumed = [f"{run.label or 'this run'} (from {run.part:.0%})" for run in runs if run.status == "to resume"]
    if resumed:
        more = f" and {len(resumed) - NAMED} more" if len(resumed) > NAMED else ""
        print(f"  to resume: {', '.join(resumed[:NAMED])}{more}")
    print_cost([run for run in runs if run.left])


def print_cost(runs: Sequence[Planned], times: Sequence[float] | None = None, at_most: bool = False) -> None:
    """Print how long some runs take here, and how much disk they need.

    Args:
        times: how many there are of each, of those of a search; None: one.
        at_most: whether some of it may be pruned.
    """
    if not runs:
        print("  nothing to train")
        return
    costs = estimates(runs)
    times = times or [1.0] * len(runs)
    seconds = sum(cost.seconds(run) * count for cost, run, count in zip(costs, runs, times, strict=True))
    disk = sum(cost.disk * count for cost, count in zip(costs, times, strict=True))
    sources = Counter(cost.source for cost in costs)
    told = {
        "trained": "from runs of equal settings that were trained here",
        "timed": "from a few rounds that were timed now",
        "alike": "from other settings that were timed",
    }
    grounds = "; ".join(f"{sources[source]} {words}" if len(sources) > 1 else words for source, words in told.items() if sources[source])
    outputs = next(path for path in (Path(runs[0].config.outputs), *Path(runs[0].config.outputs).absolute().parents) if path.exists())
    most = "at most" if at_most else "about"
    print(f"  time here: {most} {in_words(seconds)}, trained one after the other ({grounds})")
    print(f"  disk: {most} {in_bytes(disk)}; {in_bytes(shutil.disk_usage(outputs).free)} are free")


def estimates(runs: Sequence[Planned]) -> list[Cost]:
    """What each run takes: from runs of equal settings where there are some, else from a few rounds."""
    known = _trained(runs)
    timed: dict[str, Cost] = {}
    spent = 0.0
    for run in runs:
        key = pace_key(describe(run.experiment))
        if key not in known and key not in timed and spent < MOST_TIMED:
            from fl_hydra.runs.timing import time_rounds

            cost, seconds = time_rounds(run.config, run.experiment)
            timed[key], spent = cost, spent + seconds
    costs = []
    for run in runs:
        key = pace_key(describe(run.experiment))
        costs.append(known.get(key) or timed.get(key) or _alike(list(timed.values())))
    return costs


def _alike(costs: Sequence[Cost]) -> Cost:
    means = [statistics.fmean(values) for values in zip(*((cost.sample, cost.evaluation, cost.disk) for cost in costs), strict=True)]
    return Cost(means[0], means[1], means[2], "alike")


def pace_key(described: dict[str, Any]) -> str:
    """What the time of a sample and the size of a run depend on, as text: what it trains and how, not at which rate or for how long."""
    parts = {
        name: described.get(name) for name in ("fingerprint", "model", "algorithm", "m", "J", "batch_size", "noise_scale", "precision")
    }
    parts |= {group: (described.get(group) or {}).get("name") for group in ("optimizer", "server", "local_steps", "participation")}
    parts["clipped"] = bool(described.get("optimizer", {}).get("clip"))
    return json.dumps(parts, sort_keys=True)


def _trained(runs: Sequence[Planned]) -> dict[str, Cost]:
    """By :func:`pace_key`, the cost of runs that were trained on this machine, finished or not."""
    found: dict[str, list[tuple[float, int]]] = {}
    wanted = {pace_key(describe(run.experiment)) for run in runs}
    for outputs in {Path(run.config.outputs) for run in runs}:
        for folder in run_folders(outputs):
            run = read_run(folder)
            if not run.config or (key := pace_key(run.config)) not in wanted or not _trained_here(folder, runs[0].config):
                continue
            if (pace := seconds_per_sample(folder)) is not None:
                found.setdefault(key, []).append((pace, size(folder)))
    return {
        key: Cost(statistics.median(pace for pace, _ in some), 0.0, statistics.fmean(held for _, held in some), "trained")
        for key, some in found.items()
    }


def _trained_here(folder: Path, config: Config) -> bool:
    """Whether a run was trained on a machine like this one, under the conditions of this one."""
    try:
        then = json.loads(read_file(folder / ENVIRONMENT))
        on_cpu = str(then["device"]).startswith("cpu")
        engine, threads, where = then["engine"], then["threads"], then["machine"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    # Without torch: a driver is there where there is a GPU.
    here_on_cpu = config.device == "cpu" or (config.device == "auto" and not Path("/proc/driver/nvidia/version").exists())
    same = where == machine() and on_cpu == here_on_cpu
    return same and config.engine in ("auto", engine) and config.threads in (None, threads)
