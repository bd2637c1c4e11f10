"""FedRep (Collins et al., ICML 2021, algorithm 1): a head of its own for each client, trained before what all share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fl_hydra.algorithms.base import algorithms
from fl_hydra.algorithms.fedper import FedPer
from fl_hydra.errors import require

if TYPE_CHECKING:
    from torch import Tensor

    from fl_hydra.seams.layout import Columns, Layout
    from fl_hydra.seams.rows import Batch, Gradient, Rows


@algorithms.register
@dataclass
class FedRep(FedPer):
    """Of the J local steps of a round the first train the client's personal layers alone, the others all other layers alone. Only the
    latter are sent and averaged.

    With `personal_layers=none` all J steps train what is shared (FedAvg), with `all` every client trains alone. A round that is cut, or
    for which the rule for J has fewer steps, takes the first of them. In the authors' code each part takes whole passes, the last figures
    are of clients that trained their heads for ten more, and with its PyTorch, 0.4.1, heads go on by their momentum while bodies are
    trained; here, as in the paper, they rest.
    """

    name: str = "fedrep"
    label = "FedRep"
    head_steps: int = 2
    """How many of the J local steps train the personal layers; they come first. In the paper's experiments these are most of them."""

    def __post_init__(self) -> None:
        self.check_not_negative("head_steps")

    def check_steps(self, fewest: int) -> None:
        require(
            self.head_steps <= fewest or self.personal_layers in ("none", "all"),
            f"algorithm.head_steps={self.head_steps}: these are the first local steps of a round, and some client takes {fewest} in all; "
            f"choose 0 to {fewest}, or a larger J",
        )

    def columns(self, layout: Layout) -> dict[str, Columns]:
        personal = self.personal(layout)
        return {"personal": personal, "shared": layout.others(personal)}

    def step(self, rows: Rows, gradient: Gradient, batches: Sequence[Batch], j: int) -> None:
        descend_in_turn(rows, gradient(rows.parameters, batches[0]), j, self.head_steps)


def descend_in_turn(rows: Rows, gradient: Tensor, j: int, first: int) -> None:
    """Step j along `gradient` [rows, P], of the columns `personal` alone if it is one of the `first`, else of `shared` alone; where one of
    them is empty, of the other."""
    turn, other = ("personal", "shared") if j < first else ("shared", "personal")
    rows.descend(gradient, j, columns=turn if rows.optimizer.columns[turn].width else other)
