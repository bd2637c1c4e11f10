"""What a tracker is told of a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fl_hydra.config import Config
from fl_hydra.runs.identity import describe, run_hash
from fl_hydra.tracking.follower import Follower, follow
from fl_hydra.tracking.trackers.base import Followed
from fl_hydra.training.experiment import Experiment


def follower_of(config: Config, experiment: Experiment, folder: Path, warn: Callable[[str], None]) -> Follower:
    """The tracker of a run that is written in this folder."""
    followed = Followed(
        folder=folder.absolute(),
        run=run_hash(experiment),
        name=folder.name,
        config=describe(experiment),
        group=config.section or config.study or config.algorithm.option,
        trial=config.study is not None,
        outputs=Path(config.outputs).absolute(),
    )
    return follow(config.tracker, followed, warn)
