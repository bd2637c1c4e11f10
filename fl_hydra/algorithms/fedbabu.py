"""FedBABU (Oh et al., ICLR 2022): body aggregation and body update; heads are trained in fine-tuning only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fl_hydra.algorithms.base import algorithms
from fl_hydra.algorithms.fedavg_ft import FedAvgFT
from fl_hydra.errors import require

if TYPE_CHECKING:
    from torch import Tensor

    from fl_hydra.seams.clients import Clients
    from fl_hydra.seams.layout import Columns, Layout
    from fl_hydra.seams.rows import Batch, Gradient, Rows


@algorithms.register
@dataclass
class FedBABU(FedAvgFT):
    """FedAvg-FT of the body: the head keeps its initial values, which all clients know, and is not sent.

    The model of everyone is the averaged body with the initial head. With `personal_layers=none` this is FedAvg-FT. The authors' code
    averages clients equally, and fine-tunes for five passes, with momentum.
    """

    name: str = "fedbabu"
    label = "FedBABU"
    personal_layers: str = "head"
    """What is not trained, the head: head (the last linear layer), none, or names of parameters or module classes (fc*, Linear)."""
    ft_part: str = "all"
    """What fine-tuning changes: all, head or body. The paper compares the three."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.ft_part in ("all", "head", "body"), f"algorithm.ft_part={self.ft_part}: choose all, head or body")

    def check_layout(self, layout: Layout) -> None:
        line = f"algorithm.personal_layers={self.personal_layers}: nothing is left to be trained; choose fewer layers, such as head"
        require(self.columns(layout)["body"].width > 0, line)

    def untrained(self, layout: Layout) -> Columns:
        return layout.select(self.personal_layers, "algorithm.personal_layers")

    def columns(self, layout: Layout) -> dict[str, Columns]:
        head = self.untrained(layout)
        return {"head": head, "body": layout.others(head)}

    def step(self, rows: Rows, gradient: Gradient, batches: Sequence[Batch], j: int) -> None:
        rows.descend(gradient(rows.parameters, batches[0]), j, columns="body")

    def adapt(self, models: Tensor, clients: Clients) -> Tensor:
        return clients.tune(models, self.ft_steps, self.ft_lr, self.columns(clients.facts.layout).get(self.ft_part))
