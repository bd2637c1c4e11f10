"""FedHBM (Zaccone et al., TMLR 2025, arXiv 2311.18578)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fl_hydra.algorithms.base import algorithms
from fl_hydra.algorithms.localghbm import LocalGHBM

if TYPE_CHECKING:
    from torch import Tensor

    from fl_hydra.seams.rows import Rows


@algorithms.register
@dataclass
class FedHBM(LocalGHBM):
    """LocalGHBM with m = C (anchor - w) taken anew in each step, at the client's own w, where its anchor is the model with which it ended
    its last round, before any uplink: w^{j + 1} = w^j - eta g + beta C / J (w^j - anchor). m is 0 in a client's first round.
    """

    name: str = "fedhbm"
    label = "FedHBM"
    beta: float = 1.0
    """How much of the movement since the anchor is repeated; 0: FedAvg."""

    def current(self, rows: Rows) -> Tensor:
        return rows.parameters

    def after_steps(self, rows: Rows) -> None:
        rows.state["anchor"].copy_(rows.parameters)
