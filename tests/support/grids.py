"""Made-up results of the sections' full grids: what figures, at the size of a real report, are looked at and measured with."""

from __future__ import annotations

import itertools
import json
import math
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from fl_hydra.data.cifar100 import CIFAR100
from fl_hydra.data.dataset import Card
from fl_hydra.data.shakespeare import Shakespeare
from fl_hydra.report.results import Results
from fl_hydra.report.spec import Spec
from fl_hydra.runs.identity import describe
from fl_hydra.runs.reading import Run
from tests.support.make import PROJECT, experiment

SECTIONS = sorted((PROJECT / "sweeps" / "sweep").glob("*/*.yaml"))

MODEL = 3_200_000
"""Bytes of a model."""

RULES = {"linear": 4, "doubling": 2, "post_local": 3, "loss": 2, "drift": 5, "noise": 6}
"""How many times as often as with a fixed J workers average, and when."""


def results(path: Path, folder: Path, seeds: Sequence[int] = (1, 2, 3), points: int = 50) -> tuple[Results, Spec]:
    """A section as if all of its full grid had been trained with these seeds. folder: where what clients hold is written."""
    section, runs = path.stem, []
    report: Any = OmegaConf.to_container(OmegaConf.load(path).hydra.sweeper.report)
    known = set()
    for config in _configs(path):
        key = json.dumps(config, sort_keys=True)
        if key in known:
            continue
        known.add(key)
        home = folder / f"{section}-{len(known)}"
        write_clients(config, home)
        runs += [Run(home, {**config, "seed": seed}, list(rows({**config, "seed": seed}, points)), "finished") for seed in seeds]
    return Results.of(section, runs), Spec.of(report, section)


def _configs(path: Path) -> Iterator[dict[str, Any]]:
    """The resolved configuration of each point but for its seed; no data is read."""
    grid = {key: str(values).split(",") for key, values in OmegaConf.load(path).hydra.sweeper.params.items() if key != "seed"}
    cards = {
        CIFAR100: Card("made up", (3, 32, 32), 100, (500,) * 100, (100,) * 100),
        Shakespeare: Card("made up", (80,), 80, (5000,) * 150, (500,) * 150),
    }
    with pytest.MonkeyPatch.context() as patch:
        for dataset, card in cards.items():
            patch.setattr(dataset, "card", lambda self, root, card=card: card)
        for values in itertools.product(*grid.values()):
            chosen = [f"{key}={value}" for key, value in zip(grid, values, strict=True)]
            tuned = ["tuned=null"] if path.stem == "large_batch" else []
            yield describe(experiment(f"+sweep/{path.parent.name}={path.stem}", *chosen, *tuned))


def final(config: dict[str, Any]) -> float:
    """A test accuracy: what workers, local steps, batches, rates and skews cost, one for all seeds."""
    algorithm, scheduler = config["algorithm"], config["scheduler"]
    accuracy = 0.54 if config["dataset"]["name"] == "cifar100" else 0.42
    names = [algorithm["name"], config["optimizer"]["name"], scheduler["name"], str(algorithm.get("topology")), config["speeds"]["name"]]
    accuracy += sum((zlib.crc32(name.encode()) % 100 - 50) / 2500 for name in names)
    J, K, gamma = config["J"] or 1, config["K"], config["gamma"]
    accuracy -= 0.0004 * J * math.log2(max(2, min(K, 16))) + 0.002 * min(K, 16)
    scaled = scheduler["scale_batch"] != "none"
    accuracy -= (0.002 if scaled else 0.004) * math.log2(config["batch_size"] / 64) ** 2
    if config["N_c"] is not None:
        accuracy -= 0.35 / config["N_c"] * (1 + J / 16)
    if gamma is not None:
        accuracy -= 0.05 / (1 + 3 * gamma)
    if algorithm["name"] in ("localsgd", "centralized"):
        accuracy -= 0.03 * abs(math.log2(config["optimizer"]["lr"] / 0.02 * (1 + J / 64))) if config["optimizer"]["name"] == "sgdm" else 0
    return float(max(0.01, accuracy))


def rows(config: dict[str, Any], points: int) -> Iterator[dict[str, Any]]:
    """Of metrics: a rise to :func:`final`, with communication as the method has it."""
    rng = np.random.default_rng([zlib.crc32(json.dumps(config, sort_keys=True).encode()), 7])
    reached, total, K, J = final(config) + rng.normal(0, 0.004), config["budget"], config["K"], config["J"] or 1
    m, batch, name, rule = config["m"], config["batch_size"], config["algorithm"]["name"], config["local_steps"]["name"]
    workers = max(m, config["data_parallel"])
    stragglers = {"equal": 1.0, "linear": 1.5, "stragglers": 3.0}.get(config["speeds"]["name"], 1.0)
    speed = 3 + zlib.crc32(name.encode()) % 4
    for n in range(1, points + 1):
        t = n / points
        steps = math.ceil(t * total / (m * batch))
        averages = math.ceil(steps / J * RULES.get(rule, 1) * (1 if rule != "post_local" else 2 - t))
        accuracy = reached * (1 - math.exp(-speed * t)) + rng.normal(0, 0.003) * (1 - t)
        counts = dict.fromkeys(("averages", "served", "block_averages", "exchanges", "exchanged"), 0)
        up = down = 0
        if name in ("gossip", "gossip_pga", "a2cid2"):
            counts["exchanges"], up = (0 if name == "a2cid2" else 2 * steps), steps * m * MODEL
            counts["exchanged"] = up
            counts["averages"] = averages if name == "gossip_pga" else 0
        elif name in ("async_sgd", "easgd", "shat"):
            counts["served"], up, down = 2 * steps * m, steps * m * MODEL, steps * m * MODEL
        else:
            each = steps if name == "centralized" and config["data_parallel"] > 1 else averages if m > 1 or K > 1 else 0
            counts["averages"], up = each, each * workers * MODEL
            down = up
            counts["served"] = 2 * each * m if name == "fedavg" else 0
            if name == "hierarchical":
                counts["block_averages"] = int(0.8 * each)
        waits = 1.0 if name in ("async_sgd", "easgd", "shat") else stragglers
        measured = {"train/acc": 1.05 * accuracy, "val/acc": accuracy - 0.004, "test/acc": accuracy}
        losses = {key.replace("acc", "loss"): 4.6 * (1 - value) ** 1.6 for key, value in measured.items()}
        yield {
            "round": max(1, averages),
            "samples": t * total,
            "epoch": t * total / 45_000,
            "flops": t * total * 1e7,
            "seconds": steps * batch / 6400 * waits,
            "messages": (up + down) // MODEL,
            "bytes_up": up,
            "bytes_down": down,
            "J": J if rule == "fixed" else max(1, round(J / RULES[rule] * (0.5 + t))),
            **counts,
            **measured,
            **losses,
        }


def write_clients(config: dict[str, Any], folder: Path) -> None:
    """`clients.json` of federated methods, as a run writes it."""
    if config["m"] == config["K"]:
        return
    K, rng = config["K"], np.random.default_rng(0)
    if config["dataset"]["name"] == "shakespeare":
        names = list(" etaoinshrdlucmwfgypbvkETA,.;'\n")
        usual = 1 / np.arange(1, len(names) + 1)
        spread = 25.0 if config["sharding"]["name"] == "natural" else 2500.0
        counts = np.stack([rng.multinomial(3000, rng.dirichlet(spread * usual / usual.sum())) for _ in range(K)])
    else:
        names = [str(each) for each in range(100)]
        if config["N_c"] is None:
            counts = rng.multinomial(450, np.full(100, 0.01), K)
        else:
            counts = np.zeros((K, 100), int)
            for client in range(K):
                counts[client, (client * config["N_c"] + np.arange(config["N_c"])) % 100] = 450 // config["N_c"]
    probabilities = None if config["gamma"] is None else rng.dirichlet(np.full(K, config["gamma"])).tolist()
    folder.mkdir(parents=True, exist_ok=True)
    kind = "characters" if config["dataset"]["name"] == "shakespeare" else "classes"
    content = {
        "kind": kind,
        "names": names,
        "counts": counts.tolist(),
        "sizes": counts.sum(1).tolist(),
        "probabilities": probabilities,
    }
    (folder / "clients.json").write_text(json.dumps(content))
