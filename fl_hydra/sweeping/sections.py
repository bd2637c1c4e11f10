"""Where Hydra finds the sweeps of the report: `+sweep/track_a=localsgd`."""

from __future__ import annotations

from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

SWEEPS = Path(__file__).resolve().parents[2] / "sweeps"


class Sections(SearchPathPlugin):
    """Adds the folder `sweeps` to the search path."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        if SWEEPS.is_dir():  # it is not part of the package
            search_path.append(provider="fl_hydra", path=f"file://{SWEEPS}")
