"""FedAlt (Pillutla et al., ICML 2022, algorithm 2): personal parameters first, then shared ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fl_hydra.algorithms.base import algorithms
from fl_hydra.algorithms.fedrep import descend_in_turn
from fl_hydra.algorithms.fedsim import FedSim

if TYPE_CHECKING:
    from fl_hydra.seams.layout import Columns, Layout
    from fl_hydra.seams.rows import Batch, Gradient, Rows


@algorithms.register
@dataclass
class FedAlt(FedSim):
    """FedSim whose clients take J local steps of their personal parameters, and then J of the shared ones, on further batches.

    A round has 2 J steps, so that at equal samples there are half as many rounds as of FedSim. The authors' code goes through the same
    samples in both halves; here, as everywhere, a client goes on with its order. Without personal parameters all 2 J steps are of the
    shared ones, and the other way round.
    """

    name: str = "fedalt"
    label = "FedAlt"

    reads_J: ClassVar[bool] = True
    lockstep: ClassVar[bool] = True

    def round_steps(self, J: int) -> int:
        return 2 * J

    def columns(self, layout: Layout) -> dict[str, Columns]:
        personal = self.personal(layout)
        return {"personal": personal, "shared": layout.others(personal)}

    def step(self, rows: Rows, gradient: Gradient, batches: Sequence[Batch], j: int) -> None:
        descend_in_turn(rows, gradient(rows.parameters, batches[0]), j, rows.J)
