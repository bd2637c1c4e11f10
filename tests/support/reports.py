"""Files of runs as the first release wrote them, and the report on them."""

from __future__ import annotations

import csv
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from fl_hydra.report.__main__ import main
from fl_hydra.runs.identity import describe, run_folder, run_hash
from tests.support.make import experiment


def write_run(outputs: Path, *overrides: str, status: str = "finished", acc: float = 0.5) -> Path:
    """The files of a run that ended so, or began, as runs of the first release wrote them."""
    e = experiment(*overrides)
    folder = run_folder(e, outputs)
    folder.mkdir(parents=True)
    content = OmegaConf.create({"run": run_hash(e), "resolved": describe(e), "config": {"outputs": "${not} a reference"}})
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(content))
    counts = dict.fromkeys(("bytes_up", "bytes_down", "messages", "served", "averages", "block_averages", "exchanges", "exchanged"), 8)
    loss = None if status == "diverged" else 1.0
    figures = {"train/loss": loss, "train/acc": acc, "val/loss": loss, "val/acc": acc, "test/loss": loss, "test/acc": acc}
    rows = [{"round": n, "samples": 64 * n, "flops": 6400 * n, "seconds": 1.0 * n, **counts, **figures} for n in (1, 2)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if status != "unfinished":
        digest = hashlib.sha256((folder / "metrics.jsonl").read_bytes()).hexdigest()
        summary: dict[str, Any] = {"status": status, "reason": "test/loss not finite" if status == "diverged" else "", "run": run_hash(e)}
        summary |= {"metrics": rows[-1], "metrics_sha256": digest, "config": describe(e)}
        (folder / "summary.json").write_text(json.dumps(summary))
    names = outputs / "sections" / "mine.txt"
    names.parent.mkdir(exist_ok=True)
    with open(names, "a") as file:
        file.write(f"{folder.relative_to(outputs).as_posix()}\n")
    return folder


def reported(outputs: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit status of a report on these outputs."""
    monkeypatch.setattr(sys, "argv", ["report", "--outputs", str(outputs), *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def table(outputs: Path, name: str) -> dict[str, dict[str, str]]:
    """A written table's rows by their settings."""
    with open(outputs / "report" / f"{name}.csv") as file:
        return {row["setting"]: row for row in csv.DictReader(file)}


LOCAL, SLOW = ("algorithm=localsgd", "K=2", "rounds=2"), ("algorithm=slowmo", "K=2", "rounds=2")
