"""No uplink: what clients send arrives unchanged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fl_hydra.uplinks.base import Uplink, uplinks


@uplinks.register
@dataclass
class NoUplink(Uplink):
    """Whole vectors in the precision of the weights."""

    name: str = "none"

    bypassed: ClassVar[bool] = True
