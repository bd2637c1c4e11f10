"""TensorBoard."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fl_hydra.errors import require
from fl_hydra.tracking.trackers.base import Followed, Follows, Tracker, trackers


@trackers.register
@dataclass
class TensorBoard(Tracker):
    """Rows as scalars in `outputs/tensorboard`, one folder for each run."""

    name: str = "tensorboard"

    def __post_init__(self) -> None:
        import importlib.util

        require(
            importlib.util.find_spec("tensorboard") is not None,
            "tracker=tensorboard: TensorBoard is not installed; pip install 'fl-hydra[tensorboard]', or leave tracker out",
        )

    def follow(self, followed: Followed, note: Callable[[str], None]) -> Follows:
        from fl_hydra.tracking.tensorboard_run import TensorBoardRun

        return TensorBoardRun(followed)
