"""Outer optimizers: how the server, or the group of workers, updates its model with the mean of those that came back.

An outer optimizer is a row rule like any other. Its gradient is the pseudo-gradient, old minus new: the model that a round began
with, minus the mean of the models it ended with (Reddi et al., ICLR 2021, algorithm 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from fl_hydra.optim.adagrad import Adadelta, Adagrad, RMSprop
from fl_hydra.optim.adam import Adam, Adamax, NAdam, RAdam
from fl_hydra.optim.adamw import AdamW
from fl_hydra.optim.base import Optimizer
from fl_hydra.optim.sgdm import SGDM
from fl_hydra.registry import Registry


@dataclass
class Outer(Optimizer):
    """What every outer optimizer has beside its rule."""

    group: ClassVar[str] = "server"

    @property
    def averages(self) -> bool:
        """Whether the outer step simply takes the mean."""
        return False

    @property
    def divides_by_rate(self) -> bool:
        """Whether the pseudo-gradient is divided by the local learning rate, and the step multiplied by it."""
        return False


servers: Registry[Outer] = Registry("server", "fl_hydra.optim")


@servers.register
@dataclass
class OuterSGD(SGDM, Outer):
    """u <- m u + d;  x <- x - lr u  (Nesterov: x <- x - lr (d + m u)), d the pseudo-gradient. With lr=1 and m=0, x is the mean.

    per_rate: SlowMo's form (Wang et al., ICLR 2020, algorithm 1): u <- m u + d / gamma;  x <- x - lr gamma u, gamma being the mean
    of the schedule's local rates over the round's steps, so that u keeps its scale while the rate changes.
    """

    name: str = "sgd"
    lr: float = 1.0
    momentum: float = 0.0
    per_rate: bool = False
    """Whether the pseudo-gradient is divided by the local learning rate, as in SlowMo."""

    @property
    def option(self) -> str:
        if self.per_rate and not self.averages:
            return "slowmo"
        return ("nesterov" if self.nesterov else "momentum") if self.momentum else self.name

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "per_rate": self.per_rate and not self.averages}

    @property
    def divides_by_rate(self) -> bool:
        return self.per_rate

    @property
    def averages(self) -> bool:
        return self.lr == 1 and not self.momentum and not self.weight_decay and self.clip is None


@servers.register
@dataclass
class OuterAdam(Adam, Outer):
    """Adam on the pseudo-gradient."""

    name: str = "adam"


@servers.register
@dataclass
class OuterAdamW(AdamW, Outer):
    """AdamW on the pseudo-gradient."""

    name: str = "adamw"


@servers.register
@dataclass
class OuterNAdam(NAdam, Outer):
    """NAdam on the pseudo-gradient."""

    name: str = "nadam"


@servers.register
@dataclass
class OuterRAdam(RAdam, Outer):
    """RAdam on the pseudo-gradient."""

    name: str = "radam"


@servers.register
@dataclass
class OuterAdamax(Adamax, Outer):
    """Adamax on the pseudo-gradient."""

    name: str = "adamax"


@servers.register
@dataclass
class OuterAdagrad(Adagrad, Outer):
    """Adagrad on the pseudo-gradient."""

    name: str = "adagrad"


@servers.register
@dataclass
class OuterRMSprop(RMSprop, Outer):
    """RMSprop on the pseudo-gradient."""

    name: str = "rmsprop"


@servers.register
@dataclass
class OuterAdadelta(Adadelta, Outer):
    """Adadelta on the pseudo-gradient."""

    name: str = "adadelta"
