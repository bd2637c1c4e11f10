"""The search space: the overrides of a command line that are neither fixed nor a grid, as Optuna's distributions."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import ChoiceSweep, Override

from fl_hydra.errors import UserError, require

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

MOST_POINTS = 100_000
"""A space of more points than this is searched as if it were infinite."""

Value = str | int | float | bool | None


@dataclass(frozen=True)
class Space:
    """distributions: of each searched key."""

    distributions: dict[str, BaseDistribution]

    @classmethod
    def of(cls, overrides: Sequence[Override]) -> Space:
        """From overrides in the syntax of Hydra's Optuna sweeper: `interval`, `choice`, `range`, `tag(log, ...)`.

        Raises:
            UserError: one is no such space.
        """
        from hydra_plugins.hydra_optuna_sweeper._impl import create_optuna_distribution_from_override

        from fl_hydra.arguments import as_typed

        found = {}
        for override in overrides:
            try:
                found[override.get_key_element()] = create_optuna_distribution_from_override(override)
            except (ValueError, AssertionError, NotImplementedError) as error:  # the last for a kind of override that it does not know
                raise UserError(
                    f"{as_typed(str(override.input_line))}: this is not a space; it is key=interval(low,high) with low below high, "
                    "tag(log,interval(low,high)) with low above 0, choice(a,b,c), or range(start,stop,step) with start below stop"
                ) from error
        return cls(found)

    def identity(self) -> dict[str, Any]:
        """The space as plain values."""
        from optuna.distributions import distribution_to_json

        return {name: json.loads(distribution_to_json(distribution)) for name, distribution in sorted(self.distributions.items())}

    def points(self) -> list[dict[str, Value]] | None:
        """All points, in a fixed order; None if there are infinitely many."""
        axes = [_values(distribution) for distribution in self.distributions.values()]
        size = 1
        for axis in axes:
            if axis is None:
                return None
            size *= len(axis)
        if size > MOST_POINTS:
            return None
        return [dict(zip(self.distributions, point, strict=True)) for point in itertools.product(*(axis or [] for axis in axes))]

    def corners(self) -> list[dict[str, Value]]:
        """Points that are checked before anything is trained: both ends, and every choice of each key with the first of the others."""
        ends = {name: _ends(distribution) for name, distribution in self.distributions.items()}
        first = {name: values[0] for name, values in ends.items()}
        return [first, *({**first, name: value} for name, values in ends.items() for value in values[1:])]


def _ends(distribution: BaseDistribution) -> list[Any]:
    """The choices of a distribution, or its lowest and highest value."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return [distribution.low, distribution.high]


def _values(distribution: BaseDistribution) -> list[Any] | None:
    """The values of a distribution; None if there are infinitely many."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    if isinstance(distribution, IntDistribution):
        return list(range(distribution.low, distribution.high + 1, distribution.step))
    assert isinstance(distribution, FloatDistribution)
    if distribution.low == distribution.high:
        return [distribution.low]
    if distribution.step is None:
        return None
    steps = round((distribution.high - distribution.low) / distribution.step)
    return [distribution.low + step * distribution.step for step in range(steps + 1)]


def is_grid(override: Override) -> bool:
    """Whether an override is a plain list, `K=2,4,8`: one study for each of its values."""
    value = override.value()
    return isinstance(value, ChoiceSweep) and value.simple_form


def as_override(key: str, value: Value) -> str:
    """`KEY=VALUE` as Hydra reads it."""
    from fl_hydra.arguments import as_text

    if value is None or isinstance(value, bool):
        return f"{key}={json.dumps(value)}"
    require(not isinstance(value, str) or value != "", f"{key}: an empty text cannot be searched")
    return as_text(f"{key}={value!r}" if isinstance(value, float) else f"{key}={value}")
