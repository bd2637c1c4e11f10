"""FedBABU (Oh et al., ICLR 2022): body aggregation and body update; heads are trained in fine-tuning only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fl_hydra.algorithms.base import Algorithm, algorithms
from fl_hydra.errors import require

if TYPE_CHECKING:
    from torch import Tensor

    from fl_hydra.seams.clients import Clients
    from fl_hydra.seams.layout import Columns, Layout
    from fl_hydra.seams.rows import Batch, Gradient, Rows

PARTS = ("all", "head", "body")


@algorithms.register
@dataclass
class FedBABU(Algorithm):
    """FedAvg of the body. The head keeps its initial values, which all clients know, and is not sent. Before a client is judged, it tunes
    the model on its own samples by steps of plain SGD.

    The model of everyone is the averaged body with the initial head. With `personal_layers=none` this is FedAvg, whose clients fine-tune.
    The authors' code averages clients equally, and fine-tunes for five passes, with momentum.
    """

    name: str = "fedbabu"
    label = "FedBABU"
    personal_layers: str = "head"
    """What is not trained, the head: head (the last linear layer), none, or names of parameters or module classes (fc*, Linear)."""
    ft_steps: int = 5
    """Steps that a client takes on its own samples before it is judged; 0: it is judged with the model of everyone."""
    ft_lr: float | None = None
    """Learning rate of these steps; null: the run's, at the top of its schedule."""
    ft_part: str = "all"
    """What these steps change: all, head or body. The paper compares the three."""

    @property
    def personalised(self) -> bool:
        return True

    def __post_init__(self) -> None:
        self.check_not_negative("ft_steps", *([] if self.ft_lr is None else ["ft_lr"]))
        require(self.ft_part in PARTS, f"algorithm.ft_part={self.ft_part}: choose all, head or body")

    def check_layout(self, layout: Layout) -> None:
        require(
            self.columns(layout)["body"].width > 0,
            f"algorithm.personal_layers={self.personal_layers}: nothing is left to be trained; choose fewer layers, such as head",
        )

    def untrained(self, layout: Layout) -> Columns:
        return layout.select(self.personal_layers, "algorithm.personal_layers")

    def columns(self, layout: Layout) -> dict[str, Columns]:
        head = self.untrained(layout)
        return {"head": head, "body": layout.columns(lambda name, module: name not in head.names)}

    def step(self, rows: Rows, gradient: Gradient, batches: Sequence[Batch], j: int) -> None:
        rows.descend(gradient(rows.parameters, batches[0]), j, columns="body")

    def adapt(self, models: Tensor, clients: Clients) -> Tensor:
        return clients.tune(models, self.ft_steps, self.ft_lr, self.columns(clients.facts.layout).get(self.ft_part))
