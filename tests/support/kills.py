"""Runs that are killed, and what is left of them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from fl_hydra.files import read_verified
from tests.conftest import Program

# Momentum of AdamW that stays with each worker: all kinds of state are in play. A checkpoint after every round.
LOCALSGD = ("algorithm=localsgd", "K=3", "J=4", "optimizer=adamw", "epochs=8", "batch_size=16", "checkpoint.seconds=0")
FEDAVG = ("algorithm=fedavg", "K=20", "C=0.25", "J=3", "rounds=40", "batch_size=16", "checkpoint.seconds=0", "engine=stacked")


def run_folder(outputs: Path) -> Path:
    (config,) = outputs.glob("outputs/*/*/*/config.yaml")
    return config.parent


def digests(folder: Path) -> tuple[str, str]:
    """SHA-256 of the final weights and of the metrics, and both as the summary has them."""
    summary = json.loads((folder / "summary.json").read_text())
    metrics = hashlib.sha256((folder / "metrics.jsonl").read_bytes()).hexdigest()
    newest = max((folder / "checkpoints").glob("round-*.pt"))
    model = read_verified(newest)["trainer"]["state"]["model"].numpy().tobytes()
    assert summary["metrics_sha256"] == metrics
    parts = summary.get("weights_parts", {"model": summary["weights_sha256"]})  # what clients keep is among them
    assert parts["model"] == hashlib.sha256(model).hexdigest()
    return summary["weights_sha256"], metrics


SMALL = ("model.filters=1", "model.hidden=2", "batch_size=16", "evaluation.points=3", "checkpoint.seconds=0", "engine=stacked")


def half_done(program: Program, tmp_path: Path) -> Path:
    program(*LOCALSGD, cwd=tmp_path, kill={"kind": "round", "n": 12})
    return run_folder(tmp_path)
