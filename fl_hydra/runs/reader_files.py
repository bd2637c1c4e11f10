"""What a run writes for its reader alone: no result depends on it, so that a failure is a note.

`timings.jsonl`, `environment.json` (what it was begun and continued with), `config.yaml` and `clients.json` (what each client holds).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import partial
from typing import Any

from fl_hydra.config import Config
from fl_hydra.runs.folder import CLIENTS, CONFIG, ENVIRONMENT, TIMINGS, RowsFile, RunFolder, as_json
from fl_hydra.runs.holdings import holdings
from fl_hydra.runs.identity import describe, run_hash
from fl_hydra.sharding.base import Shards
from fl_hydra.training.experiment import Experiment


class ReaderFiles:
    """These files of a run.

    Args:
        folder: of the run.
        warn: is told, once, if one cannot be written.
    """

    def __init__(self, folder: RunFolder, warn: Callable[[str], None]) -> None:
        self.environments: list[dict[str, Any]] = []
        """What the run has been trained with so far."""
        self.timings = RowsFile(folder, TIMINGS, warn)
        self._folder, self._warn = folder, warn
        self._contents: dict[str, bytes] = {}
        self._failed = False

    def restore(self, timings: bytes, environments: list[dict[str, Any]]) -> None:
        """Go back to what a checkpoint holds."""
        self.environments = list(environments)
        self._attempt(partial(self.timings.restore, timings))

    def describe(self, config: Config, experiment: Experiment, shards: Shards) -> None:
        """Write environment.json, config.yaml and, where there are several clients, clients.json."""
        first, *others = self.environments
        self._contents = {
            ENVIRONMENT: as_json({**first, **({"continued_with": others} if others else {})}),
            CONFIG: _composed(config, experiment),
        }
        if experiment.K > 1:
            self._contents[CLIENTS] = (json.dumps(holdings(experiment, shards)) + "\n").encode()
        for name, content in self._contents.items():
            self._attempt(partial(self._folder.write, name, content))

    def add_timing(self, row: dict[str, Any]) -> None:
        """Append a row to timings.jsonl."""
        self._attempt(partial(self.timings.append, row))

    def settle(self) -> None:
        """See that timings.jsonl is what it should be, before a summary names its digest."""
        self._attempt(self.timings.settle)

    def digests(self) -> dict[str, str]:
        """The SHA-256 of each, by name."""
        contents = {**self._contents, TIMINGS: self.timings.content}
        return {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}

    def _attempt(self, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            if not self._failed:
                self._warn(f"{error.strerror or error}: {error.filename or self._folder.path}; the run continues without it")
            self._failed = True


def _composed(config: Config, experiment: Experiment) -> bytes:
    """What config.yaml holds: the run's hash, what decides its result, and all that was composed."""
    from omegaconf import OmegaConf

    content = {"run": run_hash(experiment), "resolved": describe(experiment)}
    return OmegaConf.to_yaml(OmegaConf.merge(OmegaConf.create(content), {"config": OmegaConf.structured(config)})).encode()
