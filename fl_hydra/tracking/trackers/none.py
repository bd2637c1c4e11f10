"""Nobody follows; runs write their own files all the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fl_hydra.tracking.trackers.base import Tracker, trackers


@trackers.register
@dataclass
class NoTracker(Tracker):
    """No tracker."""

    name: str = "none"
    follows: ClassVar[bool] = False
