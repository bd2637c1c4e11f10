"""A run's rows as TensorBoard's event files."""

from __future__ import annotations

import json
import shutil
from typing import Any

from fl_hydra.tracking.trackers.base import Followed, Held


class TensorBoardRun:
    """Follows one run. Its folder is written anew by each process, as rows are few: so it has exactly those of metrics.jsonl."""

    def __init__(self, followed: Followed) -> None:
        self._folder = followed.outputs / "tensorboard" / followed.folder.relative_to(followed.outputs)
        self._writer: Any = None
        self._sent = 0

    def held(self, held: Held) -> None:
        from torch.utils.tensorboard import SummaryWriter

        if self._writer is None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._writer = SummaryWriter(str(self._folder))
        for step, line in enumerate(held.lines[self._sent :], self._sent):
            for name, value in json.loads(line).items():
                if value is not None and not isinstance(value, list):  # those by client are no curves
                    self._writer.add_scalar(name, value, step)
        self._sent = max(self._sent, len(held.lines))
        self._writer.flush()

    def ended(self, status: str) -> None:
        if self._writer is not None:
            self._writer.add_text("status", status, max(0, self._sent - 1))

    def poll(self) -> bool:
        return False

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
