"""Clients' models of a run, made from its newest checkpoint; nothing in its folder is written, and another process may be training it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from fl_hydra.errors import require
from fl_hydra.runs.checkpoint import Checkpoint
from fl_hydra.runs.folder import rows_of
from fl_hydra.runs.weights import parts_of
from fl_hydra.training.engine_names import ENGINE_KINDS
from fl_hydra.training.experiment import Experiment

if TYPE_CHECKING:
    from torch import nn

    from fl_hydra.training.trainer import Trainer


class Judge:
    """Makes the models with which clients of a run are judged, on the CPU.

    Args:
        folder: of the run. experiment: the run. checkpoint: what it has come to. summary: of summary.json; empty if the run has not ended.

    Raises:
        CorruptFile, OSError: the state of a client is damaged, or has been replaced by that of a later checkpoint.
        UserError: it is not what summary.json was written for.
    """

    def __init__(self, folder: Path, experiment: Experiment, checkpoint: Checkpoint, summary: Mapping[str, Any]) -> None:
        from fl_hydra.training.trainer import Trainer

        conditions, self._rows = checkpoint.conditions, rows_of(checkpoint.metrics.encode())
        self._trainer: Trainer = Trainer(
            experiment,
            engine=ENGINE_KINDS[conditions.engine].gradients,
            client_folders=[folder / "checkpoints" / "clients"],
            rows_at_once=conditions.rows_at_once,
            samples_at_once=conditions.samples_at_once,
        )
        run = self._trainer.sole_run
        run.watch_files(_refuse_to_write)
        self._trainer.restore(checkpoint.trainer)
        expected = summary.get("weights_parts", {})
        require(
            not expected or parts_of(self._trainer, 0) == expected,
            f"{folder}: what its last checkpoint holds of clients is not what its summary was written for; give the run's command again",
        )

    def client(self, k: int) -> nn.Module:
        """The model with which client k is judged.

        Raises:
            CorruptFile, OSError: its state is damaged, or has been replaced by that of a later checkpoint.
            UserError: it has no samples.
        """
        run = self._trainer.sole_run
        require(
            run.shard_sizes[k] > 0,
            f"client({k}): it has no samples; client {int(np.flatnonzero(run.shard_sizes)[0])} has some",
        )
        choices = run.experiment.algorithm.choices
        last = self._rows[-1] if self._rows else {}  # it says how clients predict where the method has a choice
        chosen = {name.removeprefix("personal/choice/"): value for name, value in last.items() if name.startswith("personal/choice/")}
        return self._trainer.client_module(k, choices.index(chosen) if chosen in choices else 0)


def _refuse_to_write() -> NoReturn:
    raise PermissionError("a run that is only looked at is not written")
