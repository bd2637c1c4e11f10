"""LG-FedAvg (Liang et al., 2020, algorithm 1): representations that stay with their client, and a head for all."""

from __future__ import annotations

from dataclasses import dataclass

from fl_hydra.algorithms.base import algorithms
from fl_hydra.algorithms.fedper import FedPer


@algorithms.register
@dataclass
class LGFedAvg(FedPer):
    """FedPer the other way round: the layers that turn a sample into features are personal, and what follows is averaged.

    The paper begins with a model that FedAvg has trained, and so does the authors' code; here all begin with the initial model.
    """

    name: str = "lg_fedavg"
    label = "LG-FedAvg"
    personal_layers: str = "body"
    """body (all but the last linear layer), head (that one), none, all, or names of parameters or module classes (conv*, Conv2d)."""
