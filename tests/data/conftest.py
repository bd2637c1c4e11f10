from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fl_hydra.data.images import Arrays
from tests.support.data_files import made_up
from tests.support.etext import etext


@pytest.fixture(scope="module")
def arrays() -> Arrays:
    """Images of one's own: 60 to train with and 12 to test, of three labels."""
    return made_up(3, 60, 12, 8, 3)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An empty data folder."""
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write_raw(*works: tuple[str, str]) -> Path:
        path = tmp_path / "raw_data.txt"
        path.write_text(etext(*works))
        return path

    return write_raw
