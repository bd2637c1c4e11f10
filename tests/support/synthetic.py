"""Outputs as runs leave them, without training: the true grids of the sections with made-up figures, in memory or as files."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from fl_hydra.algorithms.base import algorithms
from fl_hydra.data.cifar100 import CIFAR100
from fl_hydra.data.dataset import DatasetInfo
from fl_hydra.data.shakespeare import Shakespeare
from fl_hydra.paths import SWEEPS
from fl_hydra.report.results import Results
from fl_hydra.report.spec import Spec
from fl_hydra.resolving import resolve
from fl_hydra.runs.folder import as_json
from fl_hydra.runs.identity import describe, hash_of
from fl_hydra.runs.reading import Run
from fl_hydra.sweeping.grid import with_own
from tests.support.make import config

SECTIONS = {path.stem: path for path in sorted((SWEEPS / "sweep").glob("*/*.yaml"))}

MODEL = 3_200_000
"""Bytes of a model, about LeNet's."""

DATASET_INFOS = {
    CIFAR100: DatasetInfo("made up", (3, 32, 32), 100, (500,) * 100, (100,) * 100),
    Shakespeare: DatasetInfo("made up", (80,), 80, (5000,) * 150, (500,) * 150),
}
"""Instead of the data."""

RULES = {"linear": 4, "doubling": 2, "post_local": 3, "loss": 2, "drift": 5, "noise": 6}
"""How many times as often as with a fixed J workers average."""

ALONE = {"scheduler", "speeds"}
"""Groups that nothing else depends on: Hydra need not compose each of their options with all others, which takes most of the time."""

COUNTS = ("averages", "served", "block_averages", "exchanges", "exchanged")


def configs(section: str) -> list[dict[str, Any]]:
    """The resolved configuration of each point of a section's grid at full size, each once, but for its seed."""
    content: Any = OmegaConf.to_container(OmegaConf.load(SECTIONS[section]))
    sweeper = content["hydra"]["sweeper"]
    grid = {key: str(values).split(",") for key, values in sweeper["params"].items() if key != "seed"}
    begun = [f"+sweep/{SECTIONS[section].parent.name}={section}", *(["tuned=null"] if content.get("tuned") else [])]
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        for dataset, info in DATASET_INFOS.items():
            patch.setattr(dataset, "info", lambda self, root, info=info: info)
        for values in itertools.product(*grid.values()):
            words = with_own([f"{key}={value}" for key, value in zip(grid, values, strict=True)], sweeper.get("own") or {})
            if words is None:
                continue
            chosen = {word.partition("=")[0]: word for word in words}
            point = config(*begun, *(word for key, word in chosen.items() if key not in ALONE))
            for key in ALONE & chosen.keys():
                setattr(point, key, getattr(config(chosen[key]), key))
            described = describe(resolve(point))
            found[json.dumps(described, sort_keys=True)] = described
    return list(found.values())


def section(name: str, seeds: Sequence[int] = (1, 2, 3), points: int = 6, clients: Path | None = None) -> tuple[Results, Spec]:
    """A section as if all of its full grid had been trained. clients: a folder for what clients hold, if that is wanted."""
    report: Any = OmegaConf.to_container(OmegaConf.load(SECTIONS[name]).hydra.sweeper.report)
    runs = []
    for place, point in enumerate(configs(name)):
        folder = (clients or Path("nowhere")) / f"{name}-{place}"
        if clients is not None:
            write_clients(point, folder)
        runs += [Run(folder, own, list(rows(own, points)), "finished") for seed in seeds for own in [{**point, "seed": seed}]]
    return Results.of(name, runs), Spec.of(report, name)


def final(config: Mapping[str, Any]) -> float:
    """A test accuracy: what workers, local steps, batches, rates and skews cost, one for all seeds."""
    algorithm, scheduler = config["algorithm"], config["scheduler"]
    accuracy = 0.54 if config["dataset"]["name"] != "shakespeare" else 0.42
    names = [algorithm["name"], config["optimizer"]["name"], scheduler["name"], str(algorithm.get("topology")), config["speeds"]["name"]]
    accuracy += sum((zlib.crc32(name.encode()) % 100 - 50) / 2500 for name in names)
    J, K, gamma = config["J"] or 1, config["K"], config["gamma"]
    accuracy -= 0.0004 * J * math.log2(max(2, min(K, 16))) + 0.002 * min(K, 16)
    accuracy -= (0.002 if scheduler["scale_batch"] != "none" else 0.004) * math.log2(config["batch_size"] / 64) ** 2
    accuracy -= 0.35 / config["N_c"] * (1 + J / 16) if config["N_c"] is not None else 0
    accuracy -= 0.05 / (1 + 3 * gamma) if gamma is not None else 0
    if algorithm["name"] in ("localsgd", "centralized") and config["optimizer"]["name"] == "sgdm":
        accuracy -= 0.03 * abs(math.log2(config["optimizer"]["lr"] / 0.02 * (1 + J / 64)))
    return float(max(0.01, accuracy))


def rows(config: Mapping[str, Any], points: int = 6) -> Iterator[dict[str, Any]]:
    """Of metrics: a rise to :func:`final`, and a little noise of the seed; with communication as the method has it."""
    rng = np.random.default_rng([zlib.crc32(json.dumps(config, sort_keys=True).encode()), 7])
    reached, total, J = final(config) + rng.normal(0, 0.004), config["budget"], config["J"] or 1
    m, batch, name, rule = config["m"], config["batch_size"], config["algorithm"]["name"], config["local_steps"]["name"]
    workers, asynchronous = max(m, config["data_parallel"]), name in ("async_sgd", "easgd", "shat")
    slowest = 1.0 if asynchronous else {"equal": 1.0, "linear": 1.5, "stragglers": 3.0}.get(config["speeds"]["name"], 1.0)
    apart = 1 + rng.normal(0, 0.01, 2)
    for n in range(1, points + 1):
        t = n / points
        steps = math.ceil(t * total / (m * batch))
        averages = math.ceil(steps / J * RULES.get(rule, 1) * (1 if rule != "post_local" else 2 - t))
        accuracy = reached * (1 - math.exp(-(3 + zlib.crc32(name.encode()) % 4) * t)) + rng.normal(0, 0.003) * (1 - t)
        counts = dict.fromkeys(COUNTS, 0)
        up = down = 0
        if name in ("gossip", "gossip_pga", "a2cid2"):
            up = counts["exchanged"] = steps * m * MODEL
            counts["exchanges"] = 0 if name == "a2cid2" else 2 * steps
            counts["averages"] = averages if name == "gossip_pga" else 0
        elif asynchronous:
            counts["served"], up, down = 2 * steps * m, steps * m * MODEL, steps * m * MODEL
        else:
            alone = workers == 1 and config["K"] == 1
            each = 0 if alone else steps if name == "centralized" else averages
            counts["averages"], up, down = each, each * workers * MODEL, each * workers * MODEL
            counts["served"] = 2 * each * m if name == "fedavg" else 0
            counts["block_averages"] = int(0.8 * each) if name == "hierarchical" else 0
        measured = {"train/acc": 1.05 * accuracy, "val/acc": accuracy * apart[0] - 0.004, "test/acc": accuracy}
        method, own = algorithms[name](), {}
        if method.personalised or config.get("personal") is not None:
            own = personal(config, accuracy, last=n == points)
        losses = {key.replace("acc", "loss"): 4.6 * (1 - value) ** 1.6 * apart[1] for key, value in measured.items()}
        if not method.global_model:
            measured |= {"val/acc": None, "test/acc": None}
            losses |= {"val/loss": None, "test/loss": None}
        yield {
            "round": max(n, averages),
            "samples": t * total,
            "epoch": t * total / 45_000,
            "lr": 0.01,
            "flops": t * total * 1e7,
            "seconds": steps * batch / 6400 * slowest,
            "messages": (up + down) // MODEL,
            "bytes_up": up,
            "bytes_down": down,
            "J": J if rule == "fixed" else max(1, round(J / RULES[rule] * (0.5 + t))),
            **counts,
            **measured,
            **losses,
            **own,
        }


def personal(config: Mapping[str, Any], accuracy: float, last: bool) -> dict[str, Any]:
    """Figures of clients' own models: better than one for all where clients hold few classes; by client in the last row."""
    K, rng = config["K"], np.random.default_rng([zlib.crc32(config["algorithm"]["name"].encode()), config["seed"]])
    mean = min(0.95, accuracy + 0.5 / (config["N_c"] or 8))
    accuracies = np.clip(mean + 0.12 * rng.normal(size=K), 0, 1)
    accuracies[0], sizes = np.nan, np.full(K, 50)
    sizes[0] = 0  # this client has no samples
    kept = np.sort(accuracies[1:])
    figures: dict[str, Any] = {}
    for part in ("val", "test"):
        found = {"loss": 1.0, "acc": kept.mean(), "acc_weighted": kept.mean(), "acc_worst_tenth": kept[: -(-K // 10)].mean()}
        found |= {"acc_deviation": kept.std(), "clients": K - 1, "acc_held_out": mean - 0.1, "clients_held_out": 5}
        if last:
            found |= {"accs": [None if math.isnan(each) else float(each) for each in accuracies], "sizes": sizes.tolist()}
        figures |= {f"personal/{part}/{key}": value for key, value in found.items()}
    return figures


def write_clients(config: Mapping[str, Any], folder: Path) -> None:
    """`clients.json` of federated methods, as a run writes it."""
    if config["m"] == config["K"]:
        return
    K, rng, text = config["K"], np.random.default_rng(0), config["dataset"]["name"] == "shakespeare"
    names = list(" etaoinshrdlucmwfgypbvkETA,.;'\n") if text else [str(each) for each in range(100)]
    if text:
        usual = 1 / np.arange(1, len(names) + 1)
        spread = 25.0 if config["sharding"]["name"] == "natural" else 2500.0
        counts = np.stack([rng.multinomial(3000, rng.dirichlet(spread * usual / usual.sum())) for _ in range(K)])
    elif config["N_c"] is None:
        counts = rng.multinomial(450, np.full(100, 0.01), K)
    else:
        counts = np.zeros((K, 100), int)
        for client in range(K):
            counts[client, (client * config["N_c"] + np.arange(config["N_c"])) % 100] = 450 // config["N_c"]
    probabilities = None if config["gamma"] is None else rng.dirichlet(np.full(K, config["gamma"])).tolist()
    content = {"kind": "characters" if text else "classes", "names": names, "counts": counts.tolist(), "sizes": counts.sum(1).tolist()}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "clients.json").write_text(json.dumps({**content, "probabilities": probabilities}))


def write_run(config: Mapping[str, Any], outputs: Path, status: str = "finished", chosen: Mapping[str, Any] | None = None) -> Path:
    """The files of a run that ended so; `unfinished`: of one that is still running. chosen: what it took up with `tuned=`."""
    name = hash_of(dict(config))
    folder: Path = outputs / config["dataset"]["name"] / config["algorithm"]["name"] / f"s{config['seed']}-{name}"
    folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(OmegaConf.create({"run": name, "resolved": dict(config), "config": {"chosen": chosen}}), folder / "config.yaml")
    lines = list(rows(config))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if status != "unfinished":
        digest = hashlib.sha256((folder / "metrics.jsonl").read_bytes()).hexdigest()
        summary = {"status": status, "reason": "", "run": name, "metrics": lines[-1], "metrics_sha256": digest, "config": dict(config)}
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def write_section(outputs: Path, name: str, folders: Sequence[Path], report: Mapping[str, Any]) -> None:
    """The list of a section's runs, and what its sweep noted of it."""
    (outputs / "sections").mkdir(parents=True, exist_ok=True)
    (outputs / "sections" / f"{name}.txt").write_text("".join(f"{each.relative_to(outputs).as_posix()}\n" for each in folders))
    content = {"commands": [f"python train.py -m section={name}"], "report": dict(report)}
    (outputs / "sections" / f"{name}.json").write_bytes(as_json(content))
