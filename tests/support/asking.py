"""Commands about runs, asked in this process."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fl_hydra.runs.__main__ import main

TINY = ("model.filters=1", "model.hidden=2", "batch_size=16", "evaluation.points=3", "engine=stacked", "epochs=1")
GRID = ("-m", "algorithm=localsgd", "K=2", "J=4,8", "seed=0,1", *TINY)


def content(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def ask(monkeypatch: pytest.MonkeyPatch, outputs: Path, *words: str) -> int:
    """The exit status of `python -m fl_hydra.runs`."""
    monkeypatch.setattr(sys, "argv", ["runs", "--outputs", str(outputs), *words])
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0
