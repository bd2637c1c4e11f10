"""FedSim (Pillutla et al., ICML 2022, algorithm 3): personal and shared parameters, trained together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fl_hydra.algorithms.base import algorithms
from fl_hydra.algorithms.fedper import FedPer
from fl_hydra.errors import require

if TYPE_CHECKING:
    from torch import nn

    from fl_hydra.seams.layout import Columns, Layout


@algorithms.register
@dataclass
class FedSim(FedPer):
    """Each local step changes a client's personal and its copy of the shared parameters; only the latter are sent and averaged.

    Any layers can be personal, and `adapters` that are added to the model. Without adapters this is FedPer by another name. The paper
    begins with a model that FedAvg has trained, and its rates of the two parts may differ; here both begin with the initial model, and
    have one rate, as in the authors' code.
    """

    name: str = "fedsim"
    label = "FedSim"
    adapters: int | None = None
    """Rank of personal matrices that are added to every convolution (1x1) and linear layer, and are 0 at first; null: none are."""

    def __post_init__(self) -> None:
        require(self.adapters is None or self.adapters >= 1, f"algorithm.adapters={self.adapters}: a rank of 1 or more is needed, or null")

    @property
    def global_model(self) -> bool:
        return super().global_model and self.adapters is None

    def extend(self, module: nn.Module) -> nn.Module:
        from fl_hydra.models.layers.adapters import add_adapters

        if self.adapters is not None:
            require(
                add_adapters(module, self.adapters) > 0,
                f"algorithm.adapters={self.adapters}: the model has neither a Conv2d nor a Linear that could have one; leave it out",
            )
        return module

    def personal(self, layout: Layout) -> Columns:
        from fl_hydra.models.layers.adapters import is_adapter

        if self.adapters is None:
            return super().personal(layout)
        chosen = super().personal(layout).names
        return layout.columns(lambda name, module: name in chosen or is_adapter(name))
