from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.etext import etext


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write_raw(*works: tuple[str, str]) -> Path:
        path = tmp_path / "raw_data.txt"
        path.write_text(etext(*works))
        return path

    return write_raw
