"""FedSGD (McMahan et al., AISTATS 2017, section 2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fl_hydra.algorithms.base import Algorithm, algorithms


@algorithms.register
@dataclass
class FedSGD(Algorithm):
    """FedAvg with one local step a round: with plain SGD the server steps along the mean of the cohort's gradients.

    A client's gradient is of one batch. The paper's is of all its samples, which is a `batch_size` of the shards' size.
    """

    name: str = "fedsgd"
    label = "FedSGD"
    J: ClassVar[int | None] = None
