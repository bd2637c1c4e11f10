"""The project's own folders, independent of the working directory."""

from __future__ import annotations

from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
CONF = PROJECT / "conf"
SWEEPS = PROJECT / "sweeps"
DATA = PROJECT / "data"
OUTPUTS = PROJECT / "outputs"
