"""`python -m benchmarks.search`: a search of 30 trials packed and pruned, and packed alone, against the same one trial after the other.

Each is a process of its own into an empty folder, as a user would start it. Written to a JSON with what each search found.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from fl_hydra.files import write_atomically

PROJECT = Path(__file__).resolve().parent.parent
SPACE = ("optimizer.lr=tag(log,interval(1e-3,1))", "optimizer.weight_decay=tag(log,interval(1e-5,1e-2))")
WAYS = {
    "packed and pruned": ("hydra/launcher=packed", "hydra/sweeper/pruner=asha"),
    "packed": ("hydra/launcher=packed",),
    "one after the other": (),
}


def search(words: list[str], trials: int) -> dict[str, dict[str, Any]]:
    """Each way's seconds, best value and what became of its trials."""
    measured = {}
    for way, options in WAYS.items():
        with tempfile.TemporaryDirectory() as folder:
            began = time.monotonic()
            command = [sys.executable, str(PROJECT / "train.py"), "-m", "hydra/sweeper=optuna", *options, *SPACE, *words]
            done = subprocess.run([*command, f"hydra.sweeper.n_trials={trials}", f"outputs={folder}"], capture_output=True, text=True)
            seconds = time.monotonic() - began
            if done.returncode:
                raise SystemExit(done.stderr[-2000:])
            (path,) = Path(folder).glob("studies/*/study.json")
            study = json.loads(path.read_text())
            states = [trial["state"] for trial in study["trials"]]
            best = study["trials"][study["best"][0]]
            measured[way] = {
                "seconds": round(seconds, 1),
                "complete": states.count("complete"),
                "pruned": states.count("pruned"),
                "best": best["values"][0],
                "params": best["params"],
            }
            print(way, measured[way], flush=True)
    return measured


def main() -> None:
    """Measure, and write."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("overrides", nargs="*", default=["dataset=digits", "algorithm=centralized", "epochs=60"], help="of the runs")
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--out", type=Path, help="a JSON file")
    arguments = parser.parse_intermixed_args()
    measured = search(arguments.overrides, arguments.trials)
    serial = measured["one after the other"]["seconds"]
    for figures in measured.values():
        figures["faster by"] = round(serial / figures["seconds"], 2)
    if arguments.out:
        content = {"overrides": arguments.overrides, "trials": arguments.trials, "ways": measured}
        write_atomically(arguments.out, (json.dumps(content, indent=2) + "\n").encode())
    print(json.dumps(measured, indent=2))


if __name__ == "__main__":
    main()
