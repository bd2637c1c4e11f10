"""A search that several tests look at."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Program
from tests.support.searches import SEARCH


@pytest.fixture(scope="package")
def searched(program: Program, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed search of two studies with four trials each."""
    folder = tmp_path_factory.mktemp("searched")
    result = program(*SEARCH, "hydra.sweeper.n_trials=4", cwd=folder)
    assert result.status == 0, result.output
    return folder
