"""The base of local optimizers: a pure rule over rows."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from fl_hydra.errors import require
from fl_hydra.registry import Component, Registry

if TYPE_CHECKING:
    from torch import Tensor

SlotWidth = Literal["row", "scalar"]
"""Width of a slot: P numbers for each row, or one."""


@dataclass(frozen=True)
class Layers:
    """The parameter tensors inside a row, for rules that treat each on its own.

    sizes: elements of each, in the order of the row. weights: whether each is a weight; by convention, such rules leave out
    biases and the parameters of normalisations.
    """

    sizes: tuple[int, ...]
    weights: tuple[bool, ...]


@dataclass
class Optimizer(Component):
    """A row rule: `step` changes parameters [rows, P] and slots in place, each row by its own gradient and hyper-parameters.

    Nothing is read back to the host, so that a step can be captured. Norms run along a row, never across rows.
    """

    group: ClassVar[str] = "optimizer"
    """The configuration group that messages name."""

    lr: float = 0.01
    """Peak learning rate, which the schedule multiplies."""
    weight_decay: float = 0.0
    """Strength of weight decay: how much of each weight is subtracted, per unit of learning rate."""
    clip: float | None = None
    """The largest L2 norm of a row's gradient; a longer one is scaled down to it."""

    def __post_init__(self) -> None:
        require(0 < self.lr < math.inf, f"{self.group}.lr={self.lr}: the learning rate must be greater than 0 and finite")
        self.check_not_negative("weight_decay")
        require(
            self.clip is None or 0 < self.clip < math.inf,
            f"{self.group}.clip={self.clip}: the largest norm of a gradient must be greater than 0 and finite; null clips none",
        )

    def check_beta(self, *names: str) -> None:
        """Refuse momentum or moment coefficients outside [0, 1).

        Raises:
            UserError: naming the first that is.
        """
        for name in names:
            value = getattr(self, name)
            require(0 <= value < 1, f"{self.group}.{name}={value}: must be at least 0 and below 1")

    def check_positive(self, *names: str) -> None:
        """Refuse numbers that are not greater than 0 and finite.

        Raises:
            UserError: naming the first that is not.
        """
        for name in names:
            value = getattr(self, name)
            require(0 < value < math.inf, f"{self.group}.{name}={value}: must be greater than 0 and finite")

    @property
    def plain(self) -> bool:
        """Whether each step is the learning rate times the gradient, with or without coupled weight decay."""
        return False

    @property
    def linear(self) -> bool:
        """Whether steps are linear in the gradients: those of SGD, with or without momentum."""
        return False

    @property
    @abstractmethod
    def slots(self) -> dict[str, SlotWidth]:
        """The state kept for each row: names and widths."""

    @property
    def hyper(self) -> dict[str, float]:
        """Hyper-parameters that do not change shapes, other than the learning rate: each becomes a tensor [rows, 1]."""
        return {"weight_decay": self.weight_decay} | ({} if self.clip is None else {"clip": self.clip})

    @property
    def form(self) -> dict[str, Any]:
        """What runs must have in common to train together: the names of hyper-parameters, the values of all other fields, and the slots."""
        values = asdict(self)
        fixed = {name: value for name, value in values.items() if name != "lr" and name not in self.hyper}
        return {**fixed, "hyper": sorted(self.hyper), "slots": self.slots}

    def step(
        self, parameters: Tensor, gradient: Tensor, slots: dict[str, Tensor], hyper: dict[str, Tensor], lr: Tensor, layers: Layers
    ) -> None:
        """One step, in place: each row's gradient is clipped to the norm `clip`, then the rule is applied.

        The factor is that of `torch.nn.utils.clip_grad_norm_`: clip / (norm + 1e-6), at most 1.

        Args:
            parameters: [rows, P].
            gradient: [rows, P]; may be overwritten.
            slots: by name, [rows, P] or [rows, 1]; zeros before the first step.
            hyper: by name, [rows, 1].
            lr: [rows, 1], this step's learning rate.
            layers: the parameter tensors inside a row.
        """
        if self.clip is not None:
            import torch

            norms = torch.linalg.vector_norm(gradient, dim=1, keepdim=True)
            gradient.mul_((hyper["clip"] / (norms + 1e-6)).clamp_(max=1))
        self.apply(parameters, gradient, slots, hyper, lr, layers)

    @abstractmethod
    def apply(
        self, parameters: Tensor, gradient: Tensor, slots: dict[str, Tensor], hyper: dict[str, Tensor], lr: Tensor, layers: Layers
    ) -> None:
        """The rule itself, with the arguments of :meth:`step`; the gradient is already clipped."""

    def decay(self, parameters: Tensor, gradient: Tensor, hyper: dict[str, Tensor], lr: Tensor) -> None:
        """Add the coupled weight decay of every parameter to the gradient, in place."""
        if self.weight_decay:
            gradient.addcmul_(parameters, hyper["weight_decay"])


optimizers: Registry[Optimizer] = Registry("optimizer", "fl_hydra.optim")
