from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fl_hydra import files
from fl_hydra.config import Config
from tests.support.folders import LOCALSGD, composed, folder_of, result, run
from tests.support.make import config


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "PAUSES", (0.0, 0.0, 0.0))


@pytest.fixture
def settings(tmp_path: Path) -> Callable[..., Config]:
    return lambda *overrides: replace(composed(*overrides), outputs=str(tmp_path / "outputs"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[tuple[str, ...], tuple[str, bytes], Path]:
    """A command, what it comes to undisturbed, and its finished folder."""
    outputs = tmp_path_factory.mktemp("whole")
    setting = config(*LOCALSGD, f"outputs={outputs}")
    outcome, notes = run(setting)
    assert outcome is not None and outcome.status == "finished" and not notes.lines
    return LOCALSGD, result(folder_of(setting)), folder_of(setting)
