"""What a search leaves in a folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser

TINY = ("model.filters=1", "model.hidden=2", "batch_size=16", "evaluation.points=3", "engine=stacked")
LOCAL = ("algorithm=localsgd", "K=2", "rounds=3", *TINY)
SEARCH = (
    "-m",
    "hydra/sweeper=optuna",
    "section=localsgd",
    *LOCAL,
    "J=4,8",
    "optimizer.lr=tag(log,interval(1e-3,1))",
    "optimizer.weight_decay=choice(0,1e-3)",
)


def parsed(*words: str) -> list[Any]:
    return OverridesParser.create().parse_overrides(list(words))


def studies(folder: Path) -> dict[str, dict[str, Any]]:
    """What is kept of each study."""
    return {path.parent.name: json.loads(path.read_text()) for path in folder.glob("outputs/studies/*/study.json")}


def digests(folder: Path) -> dict[str, str]:
    return {path.parent.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("outputs/studies/*/study.json")}


def summaries(folder: Path) -> set[Path]:
    return set(folder.glob("outputs/*/*/*/summary.json"))
