"""Runs that a tracker follows to a server on the loopback, as processes of their own, and what should have come of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.make import PROJECT
from tests.support.wandb_server import Server

RUN = ("algorithm=localsgd", "K=2", "J=1", "batch_size=8", "rounds=24", "evaluation.points=4", "checkpoint.seconds=0", "threads=1")
TRACKED = ("tracker=wandb", "tracker.project=p", "tracker.artifact_minutes=0")
SLOW = "import time; run = Trainer.run_round; Trainer.run_round = lambda self: (time.sleep(0.25), run(self))[1]"


def start(server: Server, folder: Path, *words: str, slowly: bool = False, **environment: str) -> subprocess.Popen[str]:
    home = folder / "home"
    home.mkdir(parents=True, exist_ok=True)
    patience = f"from fl_hydra.training.trainer import Trainer\n{SLOW}\n" if slowly else ""
    code = f"import sys\nif __name__ == '__main__':\n    from fl_hydra.app import main\n    exec({patience!r})\n    main()"
    command = [sys.executable, "-c", code, *words] if words[0] != "-m-tracking" else [sys.executable, "-m", "fl_hydra.tracking", *words[1:]]
    return subprocess.Popen(
        command,
        env={**os.environ, **server.environment(str(home)), "PYTHONPATH": str(PROJECT), **environment},
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=100)
    return output


def rows_of(folder: Path) -> list[dict[str, Any]]:
    (path,) = folder.glob("outputs/digits/*/*/metrics.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def digests(folder: Path) -> tuple[str, str]:
    (path,) = folder.glob("outputs/digits/*/*/summary.json")
    summary = json.loads(path.read_text())
    return summary["weights_sha256"], summary["metrics_sha256"]


def assert_sent(server: Server, id: str, rows: list[dict[str, Any]]) -> None:
    """History has exactly the rows, row n as step n, each once."""
    sent = server.history(id)
    assert [row["_step"] for row in sent] == list(range(len(rows)))
    for one, other in zip(sent, rows, strict=True):
        assert {key: one[key] for key in other if other[key] is not None} == {
            key: value for key, value in other.items() if value is not None
        }
