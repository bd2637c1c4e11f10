"""A search's objective, as a number computed from a run's rows of metrics. Validation chooses; the test set never does."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fl_hydra.errors import UserError, require

FINAL = {
    "val/acc": True,
    "val/loss": False,
    "train/acc": True,
    "train/loss": False,
    "personal/val/acc": True,
    "personal/val/loss": False,
}
"""Figures of the final model, and whether more is better. Without a global model `val/acc` is `personal/val/acc`."""

Direction = Literal["maximize", "minimize"]
"""As Optuna calls it."""

COSTS = {"samples": ("samples",), "rounds": ("round",), "bytes": ("bytes_up", "bytes_down"), "flops": ("flops",), "seconds": ("seconds",)}
"""Costs of reaching a validation accuracy, each the sum of these columns. Seconds are simulated."""


@dataclass(frozen=True)
class Objective:
    """A figure of the final model (`val/acc`), or the cost of reaching a validation accuracy for the first time (`bytes@0.5`).

    figure: of :data:`FINAL` or :data:`COSTS`. target: the accuracy, above 0 and at most 1; None for a figure of the final model.
    """

    figure: str
    target: float | None = None

    @classmethod
    def of(cls, typed: str) -> Objective:
        """From what was typed.

        Raises:
            UserError: there is no such objective.
        """
        figure, at, target = typed.partition("@")
        if not at and figure in FINAL:
            return cls(figure)
        require(not figure.startswith("test"), f"objective={typed}: the test set chooses nothing; choose {', '.join(FINAL)}")
        if at and figure in COSTS:
            try:
                accuracy = float(target)
            except ValueError:
                accuracy = math.nan
            require(0 < accuracy <= 1, f"objective={typed}: an accuracy above 0 and at most 1 is needed after @, as in {figure}@0.5")
            return cls(figure, accuracy)
        raise UserError(f"objective={typed}: choose {', '.join(FINAL)}, or {', '.join(f'{cost}@0.5' for cost in COSTS)}")

    @classmethod
    def several(cls, typed: str) -> list[Objective]:
        """From one or two of them with a + between.

        Raises:
            UserError: there is no such objective, or there are more, or one twice.
        """
        objectives = [cls.of(word) for word in typed.split("+")]
        require(
            len(objectives) <= 2 and len(set(objectives)) == len(objectives),
            f"objective={typed}: one objective, or two different ones with a + between, as val/acc+bytes@0.5",
        )
        return objectives

    def __str__(self) -> str:
        return self.figure if self.target is None else f"{self.figure}@{self.target:g}"

    @property
    def maximised(self) -> bool:
        """Whether more is better."""
        return self.target is None and FINAL[self.figure]

    @property
    def direction(self) -> Direction:
        """Whether more is better, in Optuna's words."""
        return "maximize" if self.maximised else "minimize"

    @property
    def worst(self) -> float:
        """The value of a run that has diverged, or has not reached the target."""
        return 0.0 if self.maximised else math.inf

    def value(self, status: str, rows: Sequence[Mapping[str, Any]]) -> float:
        """Of a run that has ended, `finished` or `diverged`, from its rows of metrics."""
        if status != "finished":
            return self.worst
        if self.target is None:
            return self.at(rows[-1])
        reached = (row for row in rows if (accuracy := _figure(row, "val/acc")) is not None and accuracy >= self.target)
        first = next(reached, None)
        return self.worst if first is None else float(sum(first[column] for column in COSTS[self.figure]))

    def at(self, row: Mapping[str, Any]) -> float:
        """The figure of one row; only of an objective without a target."""
        value = _figure(row, self.figure)
        return self.worst if value is None else value


def _figure(row: Mapping[str, Any], name: str) -> float | None:
    value = row[name]
    return row.get(f"personal/{name}") if value is None else value
