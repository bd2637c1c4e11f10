"""`python -m tests.chaos.searches`: searches in packs, killed at seeded random moments, must end as if nothing had happened.

What is compared is each study's `study.json`, byte by byte, and which runs have ended with which weights and metrics.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.support.make import PROJECT

SEARCH = (
    *("-m", "hydra/sweeper=optuna", "hydra/launcher=packed", "hydra/sweeper/pruner=asha", "hydra.sweeper.n_trials=12"),
    *("algorithm=localsgd", "K=2", "J=4,8", "rounds=9", "batch_size=16", "model.filters=1", "model.hidden=2"),
    *("evaluation.points=9", "engine=stacked", "threads=1"),
    *("optimizer.lr=choice(0.001,0.01,0.03,0.05,0.1,0.2,0.5,1e20)", "optimizer.weight_decay=choice(0,1e-3)"),
)
KILLS = 3


def search(outputs: Path, seconds: float | None = None) -> int:
    """Search in a process of its own, which is killed after some seconds; its exit status."""
    command = [sys.executable, str(PROJECT / "train.py"), *SEARCH, f"outputs={outputs}"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": {**os.environ, "OMP_NUM_THREADS": "1"}}
    process = subprocess.Popen(command, **quiet)  # type: ignore[call-overload]
    try:
        return int(process.wait(seconds))
    except subprocess.TimeoutExpired:
        process.kill()
        return int(process.wait())


def digest(outputs: Path) -> str:
    """Of what has come out, without what may differ: times."""
    found = hashlib.sha256()
    for path in sorted([*outputs.glob("studies/*/study.json"), *outputs.glob("*/*/*/summary.json")]):
        content = path.read_bytes()
        if path.name == "summary.json":
            summary = json.loads(content)
            content = (summary["weights_sha256"] + summary["metrics_sha256"]).encode()
        found.update(str(path.relative_to(outputs)).encode() + content)
    return found.hexdigest()


def main() -> None:
    """Kill some searches, and leave with 1 if one ends otherwise."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--searches", type=int, default=20, help="how many, each killed up to three times")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        if search(Path(folder, "undisturbed")):
            sys.exit("the undisturbed search has failed")
        whole, expected = time.monotonic() - began, digest(Path(folder, "undisturbed"))
        differing = kills = 0
        for seed in range(arguments.searches):
            moments, outputs = random.Random(seed), Path(folder, str(seed))
            kills += sum(search(outputs, moments.uniform(1, whole)) < 0 for _ in range(KILLS))
            status = search(outputs)
            differing += status != 0 or digest(outputs) != expected
        print(f"{arguments.searches} searches, killed {kills} times: {differing} end otherwise")
        sys.exit(1 if differing else 0)


if __name__ == "__main__":
    main()
