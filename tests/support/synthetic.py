"""Outputs as runs leave them, without training: the true grids of the sections, with made-up figures, to try the report on."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml  # type: ignore[import-untyped]
from omegaconf import OmegaConf

from fl_hydra.paths import SWEEPS
from fl_hydra.runs.folder import as_json
from fl_hydra.runs.identity import describe, hash_of
from tests.support.make import experiment

BYTES = 4 * 800_000
"""Of a model, about LeNet's."""


def grid(track: str, section: str, seeds: Sequence[int] | None = None) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The configurations of a section's points at full size, each once, and its report block.

    Composed on the digits, which are at hand, and called what the section says; nothing but the report is to read them.
    """
    content = yaml.safe_load((SWEEPS / "sweep" / f"track_{track}" / f"{section}.yaml").read_text())
    sweeper = content["hydra"]["sweeper"]
    chosen = [f"{key.rpartition('/')[2]}={value}" for each in content["defaults"] for key, value in each.items() if "dataset" not in key]
    dataset = next(value for each in content["defaults"] for key, value in each.items() if "dataset" in key)
    axes = {key: str(value).split(",") for key, value in sweeper["params"].items()}
    asked = axes.pop("seed", ["0"])
    found: dict[str, dict[str, Any]] = {}
    for values in itertools.product(*axes.values()):
        point = dict(zip(axes, values, strict=True))
        data = {key: point.pop(key, None) for key in ("dataset", "N_c", "batch_size")}
        natural = point.get("sharding") in ("natural", "classes")
        words = [f"{key}={value}" for key, value in point.items() if not (natural and key == "sharding")]
        if point.get("participation") == "uniform":
            words = [word for word in words if not word.startswith("gamma=")]
        extra = [f"{key}={content[key]}" for key in ("data_parallel",) if key in content]
        budget = [f"samples={content['samples']}"] if "samples" in content else []
        config = describe(experiment(*chosen, *extra, *budget, *words))
        config["dataset"]["name"] = data["dataset"] or dataset
        config["model"]["name"] = "lstm" if "shakespeare" in config["dataset"]["name"] else "lenet"
        if natural:
            config["sharding"]["name"] = point["sharding"]
            config["N_c"] = int(data["N_c"]) if data["N_c"] and point["sharding"] == "classes" else None
        config["batch_size"] = int(data["batch_size"] or config["batch_size"])
        if not budget and config["algorithm"]["name"] != "fedavg":
            config["budget"] = 6_750_000
        for seed in seeds or map(int, asked):
            found[hash_of(config | {"seed": seed})] = config | {"seed": seed}
    return list(found.values()), dict(sweeper["report"])


def rows(config: Mapping[str, Any], points: int = 6, acc: float | None = None) -> Iterator[dict[str, Any]]:
    """Figures of a run, that depend on its setting and, a little, on its seed."""
    setting = json.dumps({key: value for key, value in config.items() if key != "seed"}, sort_keys=True)
    top = np.random.default_rng(int(hashlib.sha256(setting.encode()).hexdigest()[:8], 16)).uniform(0.3, 0.6) if acc is None else acc
    noise = np.random.default_rng(int(hash_of(dict(config)), 16)).normal(scale=0.004, size=6)
    method, m, J = config["algorithm"]["name"], config["m"], config["J"]
    for point in range(1, points + 1):
        samples = config["budget"] * point // points
        rounds = max(point, samples // (m * (J or 16) * config["batch_size"]))
        together = config["data_parallel"] if method == "centralized" else m
        messages = 2 * together * rounds if together > 1 else 0
        asynchronous, gossip = method in ("async_sgd", "easgd", "shat"), method in ("gossip", "a2cid2")
        served = messages if asynchronous or method == "fedavg" else 0
        acc = top * (1 - 0.8 ** (2 * point))
        figures = {
            "train/loss": 4 - 3 * acc,
            "train/acc": acc + noise[0],
            "val/loss": 4 - 2.5 * acc,
            "val/acc": acc + noise[1],
            "test/loss": 4 - 2.4 * acc,
            "test/acc": acc + noise[2],
        }
        yield {
            "round": rounds,
            "samples": samples,
            "epoch": samples / 45_000,
            "lr": 0.01,
            **figures,
            "J": J,
            "bytes_up": messages // 2 * BYTES,
            "bytes_down": messages // 2 * BYTES,
            "messages": messages,
            "served": served,
            "averages": 0 if asynchronous or gossip else rounds if messages else 0,
            "block_averages": 0,
            "exchanges": rounds if gossip else 0,
            "exchanged": messages * BYTES if gossip else 0,
            "seconds": samples / 6400 / m,
            "flops": samples * 30_000_000,
        }


def write_run(
    config: Mapping[str, Any], outputs: Path, status: str = "finished", acc: float | None = None, chosen: Mapping[str, Any] | None = None
) -> Path:
    """The files of a run that ended so; `unfinished`: of one that is still running. chosen: what it took up with `tuned=`."""
    name = hash_of(dict(config))
    folder: Path = outputs / config["dataset"]["name"] / config["algorithm"]["name"] / f"s{config['seed']}-{name}"
    folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(OmegaConf.create({"run": name, "resolved": dict(config), "config": {"chosen": chosen}}), folder / "config.yaml")
    lines = list(rows(config, acc=acc))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if status != "unfinished":
        digest = hashlib.sha256((folder / "metrics.jsonl").read_bytes()).hexdigest()
        summary = {"status": status, "reason": "", "run": name, "metrics": lines[-1], "metrics_sha256": digest, "config": dict(config)}
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def write_section(outputs: Path, name: str, folders: Sequence[Path], report: Mapping[str, Any], command: str = "") -> None:
    """The list of a section's runs, and what its sweep noted of it."""
    (outputs / "sections").mkdir(parents=True, exist_ok=True)
    (outputs / "sections" / f"{name}.txt").write_text("".join(f"{each.relative_to(outputs).as_posix()}\n" for each in folders))
    content = {"commands": [command or f"python train.py -m section={name}"], "report": dict(report)}
    (outputs / "sections" / f"{name}.json").write_bytes(as_json(content))
