"""When the trials of a search are compared, and which of them are pruned."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, Any

from fl_hydra.errors import UserError, require

if TYPE_CHECKING:
    import optuna
    from omegaconf import DictConfig

FINEST = 1000
"""Rungs closer than this fraction of a budget are the same."""


@dataclass(frozen=True)
class Pruning:
    """config: of Optuna's pruner, as the sweeper's group `pruner` has it; None: every trial is trained to its end.

    rungs: ascending fractions of the budget at which trials are compared. lockstep: whether trials train together, and wait for each other
    between rungs too.
    """

    config: DictConfig | None = None
    rungs: tuple[float, ...] = ()
    lockstep: bool = True

    @classmethod
    def of(cls, config: DictConfig | None, rungs: list[float] | None) -> Pruning:
        """From what the sweeper was given; without rungs, those that suit the pruner.

        Raises:
            UserError: there are no such rungs, or such a pruner.
        """
        kind = "" if config is None else str(config.get("_target_", ""))
        if config is None or kind.endswith("NopPruner"):
            require(rungs is None, f"hydra.sweeper.rungs={rungs}: nothing is pruned; choose hydra/sweeper/pruner=asha or median")
            return cls()
        if rungs is None:
            factor = int(config.get("reduction_factor", 0))
            rungs = [factor**-2, factor**-1] if factor >= 2 else [0.2, 0.4, 0.6, 0.8]
        rising = all(isinstance(rung, int | float) for rung in rungs) and all(a < b for a, b in zip([0, *rungs], [*rungs, 1], strict=True))
        require(
            bool(rungs) and rising,
            f"hydra.sweeper.rungs={list(rungs)}: ascending fractions of the budget between 0 and 1 are needed, as [0.1,0.3]",
        )
        made = cls(config, tuple(float(rung) for rung in rungs))
        try:
            made.pruner()
        except Exception as error:  # whatever Optuna raises over its options
            raise UserError(
                f"hydra.sweeper.pruner: {' '.join(str(error).split())[:200]}; see Optuna's {kind.rpartition('.')[2]}"
            ) from error
        return made

    @cached_property
    def milestones(self) -> tuple[float, ...]:
        """Fractions of the budget at which trials wait for each other: the rungs, and steps of the shortest distance between two rungs.

        So trials that continue and new ones in freed places advance together, and equally many train at all times.
        """
        if not self.rungs:
            return ()
        rungs = [Fraction(rung).limit_denominator(FINEST) for rung in self.rungs]
        if not self.lockstep:
            return tuple(map(float, rungs))
        unit = min(b - a for a, b in zip([Fraction(0), *rungs], [*rungs, Fraction(1)], strict=True))
        steps = {unit * n for n in range(1, int(1 / unit) + 1) if unit * n < 1}
        # A step that ends just before a rung would be a stage for next to nothing.
        apart = {step for step in steps if all(abs(step - rung) > unit / 2 for rung in rungs)}
        return tuple(float(part) for part in sorted(apart | set(rungs)))

    def until(self, passed: int) -> float | None:
        """The fraction of the budget up to which a trial is trained after so many milestones; None: to its end."""
        return self.milestones[passed] if passed < len(self.milestones) else None

    def step(self, passed: int) -> int | None:
        """Optuna's step of the next milestone; None if trials are not compared there.

        For successive halving these are powers of the reduction factor, by which it recognises its rungs.
        """
        at = self.until(passed)
        rungs = [float(Fraction(rung).limit_denominator(FINEST)) for rung in self.rungs]
        if at is None or at not in rungs:
            return None
        assert self.config is not None
        factor = int(self.config.get("reduction_factor", 0))
        return factor ** rungs.index(at) if factor >= 2 else rungs.index(at) + 1

    def pruner(self) -> optuna.pruners.BasePruner:
        """Optuna's."""
        from hydra.utils import instantiate

        with quietly():
            made: optuna.pruners.BasePruner = instantiate(self.config)
        return made

    def identity(self) -> dict[str, Any]:
        """The part that identifies a study; empty if nothing is pruned."""
        from omegaconf import OmegaConf

        return {} if self.config is None else {"pruner": OmegaConf.to_container(self.config), "rungs": list(self.rungs)}


@contextmanager
def quietly() -> Iterator[None]:
    """A context without the warnings of Optuna and Hydra about experimental or changing features."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
