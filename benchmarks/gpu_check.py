"""`make gpu-check`: all that only a GPU can tell, in one command, written to outputs/gpu-check.md.

The tests that need a GPU, the benchmark, the required figures, and, where `data/cifar100.npz` is there, one full FedAvg and one
full centralized run. A part that fails is said to have failed, and the others go on.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.bench import machine, synchronize
from benchmarks.workloads import ManyClients, trainer
from fl_hydra.algorithms.centralized import Centralized
from fl_hydra.algorithms.localsgd import LocalSGD
from fl_hydra.training.trainer import Trainer

PROJECT = Path(__file__).resolve().parent.parent
PRECISION = "bf16"


def timed(run: Trainer, rounds: int) -> float:
    """Seconds of so many rounds, once graphs are recorded."""
    for _ in range(3):
        run.run_round()
    synchronize()
    began = time.perf_counter()
    for _ in range(rounds):
        run.run_round()
    synchronize()
    return time.perf_counter() - began


def fedavg() -> tuple[float, str]:
    """Seconds of 2000 FedAvg rounds, K=100, C=0.1, J=4, batch 64."""
    run = trainer(precision=PRECISION)
    return timed(run, 2000), run.engine_name


def centralized() -> tuple[float, str]:
    """Seconds of 150 epochs of 45,000 images at batch 64."""
    steps = 704  # 45,000 images at batch 64
    run = trainer(algorithm=Centralized(), K=1, m=1, J=steps, precision=PRECISION)
    return 15 * timed(run, 10), f"{run.engine_name}, from 10 epochs"


def localsgd() -> tuple[float, str]:
    """Images a second of LocalSGD, K=8, J=16, batch 64."""
    run = trainer(algorithm=LocalSGD(), K=8, m=8, J=16, precision=PRECISION)
    return 100 * 8 * 16 * 64 / timed(run, 100), run.engine_name


def packed() -> tuple[float, str]:
    """Images a second of 15 FedAvg runs together."""
    run = trainer(runs=15, precision=PRECISION)
    return 50 * 15 * 2560 / timed(run, 50), f"{run.engine_name}, 15 runs"


def evaluation() -> tuple[float, str]:
    """Milliseconds of an evaluation on 10,000 images."""
    run = trainer(precision=PRECISION)
    run.evaluate()
    times = []
    for _ in range(10):
        began = time.perf_counter()
        run.evaluate()
        times.append(time.perf_counter() - began)
    return 1000 * sorted(times)[5], run.engine_name


def memory() -> tuple[float, str]:
    """Peak GPU memory with 100,000 clients against 100."""
    peaks = []
    for K in (100, 100_000):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        run = trainer(ManyClients(), K=K, precision=PRECISION, engine="graph")
        timed(run, 5)
        peaks.append(torch.cuda.max_memory_allocated())
        del run
    return peaks[1] / peaks[0], "K=100,000 to K=100"


REQUIRED: dict[str, tuple[Callable[[], tuple[float, str]], str, float]] = {
    "2000 FedAvg rounds, seconds": (fedavg, "at most", 20),
    "centralized, 150 epochs of 45,000 images at batch 64, seconds": (centralized, "at most", 60),
    "LocalSGD K=8 J=16, images/s": (localsgd, "at least", 400_000),
    "packed, images/s": (packed, "at least", 800_000),
    "evaluation of 10,000 images, ms": (evaluation, "at most", 15),
    "GPU memory": (memory, "at most", 1.05),
}


def command(*words: str) -> tuple[int, str]:
    """Run a command, show what it prints, and return its status and last line."""
    done = subprocess.run([sys.executable, *words], cwd=PROJECT, text=True, stdout=subprocess.PIPE, check=False)
    print(done.stdout, flush=True)
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    return done.returncode, lines[-1] if lines else ""


def main() -> None:
    """Check everything and write the table."""
    outputs = PROJECT / "outputs"
    outputs.mkdir(exist_ok=True)
    if not torch.cuda.is_available():
        sys.exit("error: no CUDA device here; make gpu-check needs one")
    found: dict[str, Any] = {"machine": machine()}
    lines = [f"# GPU check on {found['machine']['gpu']}, torch {torch.__version__}, commit {found['machine']['commit']}", ""]
    lines += ["| what | found | required | |", "| --- | --- | --- | --- |"]

    def note(what: str, value: str, required: str, remark: str) -> None:
        lines.append(f"| {what} | {value} | {required} | {remark} |")
        print(lines[-1], flush=True)
        (outputs / "gpu-check.md").write_text("\n".join(lines) + "\n")

    status, last = command("-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", "tests/test_gpu.py")
    note("tests that need a GPU", last, "all pass", "" if status == 0 else "FAILED")
    for what, (measure, relation, bound) in REQUIRED.items():
        try:
            value, remark = measure()
        except Exception as error:
            note(what, "failed", f"{relation} {bound:,}", " ".join(str(error).split())[:200])
            continue
        fine = value <= bound if relation == "at most" else value >= bound
        found[what] = value
        note(what, f"{value:,.3g}", f"{relation} {bound:,}", remark + ("" if fine else "; MISSED"))
    status, _ = command("-m", "benchmarks.bench", "--json", str(outputs / "bench-gpu.json"))
    note("benchmark", "outputs/bench-gpu.json", "", "" if status == 0 else "FAILED")
    if (PROJECT / "data" / "cifar100.npz").exists():
        common = ("train.py", "dataset=cifar100", f"precision={PRECISION}", "section=gpu")
        for name, settings in (("FedAvg, 2000 rounds", ("algorithm=fedavg", "rounds=2000")), ("centralized", ("algorithm=centralized",))):
            began = time.perf_counter()
            status, last = command(*common, *settings)
            note(f"{name}, CIFAR-100", last, "", f"{time.perf_counter() - began:.0f} s" + ("" if status == 0 else "; FAILED"))
    (outputs / "gpu-check.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
