"""FedAvg (McMahan et al., AISTATS 2017, algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass

from fl_hydra.algorithms.base import Algorithm, algorithms


@algorithms.register
@dataclass
class FedAvg(Algorithm):
    """A cohort of round(C K) clients starts from the server's model, takes J steps each, and is averaged by shard size."""

    name: str = "fedavg"
