"""What a local optimizer is: a pure rule over rows."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from fl_hydra.errors import require
from fl_hydra.registry import Component, Registry

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Optimizer(Component):
    """A row rule: `apply` changes parameters [rows, P] and slots in place, each row by its own gradient and hyper-parameters.

    Nothing is read back to the host, so that a step can be captured.
    """

    lr: float = 0.01
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        require(0 < self.lr < math.inf, f"optimizer.lr={self.lr}: the learning rate must be greater than 0 and finite")
        require(0 <= self.weight_decay < math.inf, f"optimizer.weight_decay={self.weight_decay}: must be 0 or more and finite")

    @property
    @abstractmethod
    def slots(self) -> dict[str, bool]:
        """Names of the state kept for each row; True: P numbers, False: one."""

    @property
    @abstractmethod
    def hyper(self) -> dict[str, float]:
        """Hyper-parameters that do not change shapes, other than the learning rate: each becomes a tensor [rows, 1]."""

    @property
    def form(self) -> dict[str, Any]:
        """What rows must have in common to take a step together: all that is not a hyper-parameter, and which of those are 0."""
        values = asdict(self)
        return {name: bool(value) if name in self.hyper else value for name, value in values.items() if name != "lr"}

    @abstractmethod
    def apply(self, parameters: Tensor, gradient: Tensor, slots: dict[str, Tensor], hyper: dict[str, Tensor], lr: Tensor) -> None:
        """One step, in place.

        Args:
            parameters: [rows, P].
            gradient: [rows, P]; may be overwritten.
            slots: by name, [rows, P] or [rows, 1]; zeros before the first step.
            hyper: by name, [rows, 1].
            lr: [rows, 1], this step's learning rate.
        """


def check_beta(name: str, value: float) -> None:
    """Refuse a momentum or moment coefficient outside [0, 1)."""
    require(0 <= value < 1, f"optimizer.{name}={value}: must be at least 0 and below 1")


optimizers: Registry[Optimizer] = Registry("optimizer", "fl_hydra.optim")
