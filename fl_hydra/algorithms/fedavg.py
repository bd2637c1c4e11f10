"""FedAvg (McMahan et al., AISTATS 2017, algorithm 1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from fl_hydra.algorithms.base import Algorithm, algorithms


@algorithms.register
@dataclass
class FedAvg(Algorithm):
    """A cohort of round(C K) clients starts from the server's model, takes J steps each, and is averaged by shard size."""

    name: str = "fedavg"
    label = "FedAvg"
    variants: ClassVar[Mapping[str, str]] = {
        "momentum": "FedAvgM",
        "fedadagrad": "FedAdagrad",
        "fedadam": "FedAdam",
        "fedyogi": "FedYogi",
    }
