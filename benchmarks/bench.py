"""`make bench`: FedAvg rounds, overhead, throughput and memory; contenders take turns in one process, figures are medians.

Absolute times are this machine's; the ratios are what is required and compared from commit to commit.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.plain import PlainFedAvg, lenet
from fl_hydra.algorithms.base import Algorithm
from fl_hydra.algorithms.centralized import Centralized
from fl_hydra.algorithms.fedavg import FedAvg
from fl_hydra.data.dataset import Arrays, Dataset, channel_statistics, datasets
from fl_hydra.models.lenet import LeNet
from fl_hydra.optim.schedules import Constant
from fl_hydra.optim.sgdm import SGDM
from fl_hydra.participation.schemes import Uniform
from fl_hydra.sharding.base import equal_sizes
from fl_hydra.sharding.iid import IID
from fl_hydra.training.experiment import Experiment
from fl_hydra.training.trainer import Trainer

CLIENTS = (100, 10_000, 100_000)
Name = TypeVar("Name", str, int)

REQUIRED = {
    "FedAvg round, fp32": ("at least", 1.15),
    "FedAvg round, bf16": ("at least", 2.3),
    "overhead round": ("at most", 1.5),
    "time per round, K=10,000 to K=100": ("within", 1.2),
    "time per round, K=100,000 to K=100": ("within", 1.2),
    "peak memory, K=10,000 to K=100": ("within", 1.2),
    "peak memory, K=100,000 to K=100": ("within", 1.2),
}


@datasets.register
@dataclass
class MadeUp(Dataset):
    """Random images with the shapes of CIFAR-100."""

    name: str = "made-up"
    validation: float = 0.0
    crop: int = 4
    flip: bool = True

    @property
    def class_count(self) -> int:
        return 100

    def source(self, root: Path) -> None:
        return None

    def read(self, root: Path) -> Arrays:
        return made_up(50_000, 32, 3)


@datasets.register
@dataclass
class ManyClients(MadeUp):
    """Enough small random images for 100,000 clients."""

    name: str = "many-clients"
    crop: int = 1

    def read(self, root: Path) -> Arrays:
        return made_up(400_000, 16, 1)


def made_up(count: int, side: int, channels: int) -> Arrays:
    """Random images and labels."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, side, side, channels), np.uint8)
    return Arrays(images, np.arange(count) % 100, images[:100], np.arange(100))


def experiment(
    dataset: Dataset, root: Path, *, algorithm: Algorithm, K: int, m: int, J: int, batch_size: int, precision: str
) -> Experiment:
    """A run that is long enough to be timed."""
    return Experiment(
        dataset=dataset,
        card=dataset.card(root),
        model=LeNet(),
        optimizer=SGDM(lr=0.1, weight_decay=1e-4, momentum=0.0),
        scheduler=Constant(),
        algorithm=algorithm,
        sharding=IID(),
        participation=Uniform(),
        K=K,
        m=m,
        J=J,
        N_c=None,
        batch_size=batch_size,
        budget=10**12,
        points=1,
        precision=precision,
        seed=0,
        split_seed=0,
        data=root,
    )


def trainer(root: Path, engine: str = "auto", **overrides: Any) -> Trainer:
    """A trainer on the made-up CIFAR-100, FedAvg K=100, C=0.1, J=4, batch 64 unless overridden."""
    settings: dict[str, Any] = {"algorithm": FedAvg(), "K": 100, "m": 10, "J": 4, "batch_size": 64, "precision": "fp32"} | overrides
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Trainer(experiment(MadeUp(), root, **settings), engine=engine, device=device)


def interleaved(contenders: Mapping[Name, Callable[[], object]], repeats: int) -> dict[Name, float]:
    """Median seconds of each contender; they take turns, so that a drift of the machine meets all of them."""
    for contender in contenders.values():
        contender()
    times: dict[Name, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, contender in contenders.items():
            began = time.perf_counter()
            contender()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in times.items()}


def bare_passes(count: int) -> Callable[[], None]:
    """Forward and backward passes of one image through the plain network, nothing else."""
    module = lenet(100)
    images, labels = torch.randn(1, 3, 32, 32), torch.zeros(1, dtype=torch.int64)

    def run() -> None:
        for _ in range(count):
            module.zero_grad()
            F.cross_entropy(module(images), labels).backward()

    return run


def plain_loop(root: Path) -> PlainFedAvg:
    """The yardstick on the same images."""
    arrays = MadeUp().load(root)
    mean, deviation = channel_statistics(arrays.train_images)
    images = torch.from_numpy(((arrays.train_images / 255 - mean) / deviation).astype(np.float32)).permute(0, 3, 1, 2).contiguous()
    labels = torch.from_numpy(arrays.train_labels)
    shards = list(torch.randperm(len(labels)).split(equal_sizes(len(labels), 100).tolist()))
    return PlainFedAvg(images, labels, shards, cohort=10, J=4, batch_size=64)


def measure(root: Path, repeats: int) -> dict[str, Any]:
    """All figures."""
    plain = plain_loop(root)
    rounds = {
        "plain loop": plain.run_round,
        "FedAvg round, fp32": trainer(root).run_round,
        "FedAvg round, bf16": trainer(root, precision="bf16").run_round,
    }
    seconds = interleaved(rounds, repeats)
    ratios = {name: seconds["plain loop"] / seconds[name] for name in rounds if name != "plain loop"}

    small = {"ten bare passes": bare_passes(10), "overhead round": trainer(root, J=1, batch_size=1).run_round}
    small_seconds = interleaved(small, repeats * 10)
    ratios["overhead round"] = small_seconds["overhead round"] / small_seconds["ten bare passes"]

    steps = 10
    central = {
        f"centralized, {precision}": trainer(root, algorithm=Centralized(), K=1, m=1, J=steps, precision=precision).run_round
        for precision in ("fp32", "bf16")
    }
    central_seconds = interleaved(central, repeats)

    many_seconds = interleaved({K: many_clients(root, K).run_round for K in CLIENTS}, repeats * 2)
    many = {K: {"seconds": many_seconds[K], "peak_mb": peak_with_clients(K)} for K in CLIENTS}
    for K in CLIENTS[1:]:
        ratios[f"time per round, K={K:,} to K=100"] = many[K]["seconds"] / many[100]["seconds"]
        ratios[f"peak memory, K={K:,} to K=100"] = many[K]["peak_mb"] / many[100]["peak_mb"]
    return {
        "seconds": seconds | small_seconds,
        "images_per_second": {name: steps * 64 / value for name, value in central_seconds.items()}
        | {name: 2560 / value for name, value in seconds.items()},
        "ratios": ratios,
        "many_clients": {str(K): value for K, value in many.items()},
        "peak_mb": peak_mb(),
    }


def many_clients(root: Path, K: int) -> Trainer:
    """K clients of which ten take part in a round."""
    return Trainer(experiment(ManyClients(), root, algorithm=FedAvg(), K=K, m=10, J=4, batch_size=64, precision="fp32"))


def peak_with_clients(K: int) -> float:
    """Peak memory in MB of five rounds with K clients, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.bench", "--peak-with-clients", str(K)], capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def peak_mb() -> float:
    """The most memory this process has held, in MB; what its parent held does not count."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def holds(name: str, ratio: float) -> str:
    """Whether a ratio is what is required of it."""
    if name not in REQUIRED:
        return ""
    relation, bound = REQUIRED[name]
    fine = {"at least": ratio >= bound, "at most": ratio <= bound, "within": 1 / bound <= ratio <= bound}[relation]
    return f"{relation} {bound:g}: {'yes' if fine else 'NO'}"


def machine() -> dict[str, Any]:
    """What was measured on."""
    model = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "")
    return {
        "processor": model or platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def show(figures: dict[str, Any]) -> None:
    """The tables."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=120)
    times = Table("what", "median ms", "images/s", title="{processor}, {cores} cores, {gpu}, torch {torch}".format(**figures["machine"]))
    for name, seconds in figures["seconds"].items():
        rate = figures["images_per_second"].get(name)
        times.add_row(name, f"{1000 * seconds:.1f}", f"{rate:.0f}" if rate else "")
    for name, rate in figures["images_per_second"].items():
        if name not in figures["seconds"]:
            times.add_row(name, "", f"{rate:.0f}")
    for K, value in figures["many_clients"].items():
        times.add_row(f"K={int(K):,}, ten a round, peak {value['peak_mb']:.0f} MB", f"{1000 * value['seconds']:.1f}", "")
    console.print(times)
    ratios = Table("ratio", "value", "required")
    for name, ratio in figures["ratios"].items():
        ratios.add_row(name, f"{ratio:.2f}", holds(name, ratio))
    console.print(ratios)


def main() -> None:
    """Measure, print tables and JSON, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peak-with-clients", type=int, metavar="K", help=argparse.SUPPRESS)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", type=Path, default=Path("outputs/bench.json"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.peak_with_clients is not None:
            run = many_clients(Path(folder), arguments.peak_with_clients)
            for _ in range(5):
                run.run_round()
            print(peak_mb())
            return
        figures = {"machine": machine(), **measure(Path(folder), arguments.repeats)}
    show(figures)
    text = json.dumps(figures, indent=2)
    print(text)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
