"""Whether a difference between two settings is significant among everything that a section compares, and how many seeds would decide."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fl_hydra.arrays import Reals
from fl_hydra.report.axes import Axis, Value, axis, in_order
from fl_hydra.report.cost import CostTable
from fl_hydra.report.measures import Measure, measure
from fl_hydra.report.results import Results, Setting, Statistic, narrowed
from fl_hydra.report.spec import Comparison

LEVEL = 0.05
"""The probability with which a section may claim anything if nothing differs."""

POWER = 0.8
"""The probability with which :func:`seeds_needed` seeds would decide a difference, if it is as large as it looks."""

FEWEST = 3
"""The fewest seeds of each side for a claim."""

MOST_SEEDS = 1000
"""The search for a number of seeds stops here: nobody trains more."""


@dataclass(frozen=True)
class Difference:
    """A setting against another that differs from it on one axis of the comparison.

    setting, other: what is compared, and with what. mine, others: their figures; None if no seed has finished. p: of
    :func:`difference_p`; None if there is none. adjusted: by Holm, over the whole section. seeds: needed on each side to decide it; None
    if unknown.
    """

    comparison: Comparison
    measure: Measure
    setting: Setting
    other: Setting
    mine: Statistic | None
    others: Statistic | None
    p: float | None = None
    adjusted: float | None = None
    seeds: int | None = None

    @property
    def known(self) -> bool:
        """Whether both sides have figures."""
        return self.mine is not None and self.others is not None

    @property
    def size(self) -> float:
        """The difference of the means; 0 if one is unknown."""
        return self.mine.mean - self.others.mean if self.mine is not None and self.others is not None else 0.0

    @property
    def n(self) -> int:
        """The number of seeds on the side with fewer."""
        return min(self.mine.n, self.others.n) if self.mine is not None and self.others is not None else 0

    @property
    def holds(self) -> bool:
        """Whether it may be claimed."""
        return self.adjusted is not None and bool(holding(self.adjusted, self.n))


def difference_p(first: ArrayLike, second: ArrayLike) -> Reals:
    """Two-sided p of Welch's statistic with the degrees of freedom of the smaller side, min(n) - 1; nan if there is no test.

    The statistic is that of Welch (Biometrika 34, 1947), which lets variances differ. His degrees of freedom are estimated, and with
    three seeds that fails far out in the tail, where an adjusted p lies: if one side varies ten times as much as the other, p < 0.05 / 76
    comes up four times too often. With min(n) - 1 degrees of freedom the probability of p below any level is at most that level, for
    normal figures of any two variances (Mickey and Brown, Ann. Math. Statist. 37, 1966). It is never smaller than Welch's own p, so
    what is significant by it is significant by Welch's test.

    Runs of the same seed begin with the same weights and shards, and could be treated as pairs. But they diverge within a few steps, so
    that little is shared at the end; what pairs do share makes this test more conservative, not less, and it does not require that both
    sides have finished the same seeds.

    Args:
        first, second: figures [..., seeds of a side]; sides may have different numbers of them.

    Returns:
        float64 [...]: nan if a side has one seed, or neither has any spread.
    """
    from scipy import stats

    sides = [np.asarray(side, np.float64) for side in (first, second)]
    fewest = min(side.shape[-1] for side in sides)
    spread = _spread(sides[0]) | _spread(sides[1])
    if fewest < 2:
        return np.full(spread.shape, np.nan)
    variances = [side.var(-1, ddof=1) / side.shape[-1] for side in sides]
    error = np.sqrt(np.where(spread, variances[0] + variances[1], 1.0))
    p = 2 * stats.t.sf(np.abs(sides[0].mean(-1) - sides[1].mean(-1)) / error, fewest - 1)
    return np.where(spread, p, np.nan)


def _spread(values: Reals) -> NDArray[np.bool_]:
    """Whether values differ by more than rounding: for equal values the test would divide by almost nothing."""
    wide: NDArray[np.bool_] = np.ptp(values, axis=-1) > 1e-9 * np.maximum(1e-300, np.abs(values).max(-1))
    return wide


def holm(ps: ArrayLike) -> Reals:
    """Adjusted p (Holm, Scandinavian Journal of Statistics 6, 1979): any false claim below a level has at most that probability.

    Comparisons without a test also count, since they were made.

    Args:
        ps: of the comparisons of a family, [..., comparisons]; nan where there is no test.

    Returns:
        float64 [..., comparisons]; nan where there is no test.
    """
    given = np.asarray(ps, np.float64)
    order = np.argsort(given, axis=-1)  # nan last
    factors = given.shape[-1] - np.arange(given.shape[-1])
    steps = np.minimum(1.0, factors * np.take_along_axis(given, order, -1))
    adjusted = np.empty_like(given)
    np.put_along_axis(adjusted, order, np.maximum.accumulate(steps, axis=-1), -1)
    return adjusted


def holding(adjusted: ArrayLike, seeds: ArrayLike) -> NDArray[np.bool_]:
    """Which differences may be claimed: adjusted p below :data:`LEVEL`, and both sides of at least :data:`FEWEST` seeds."""
    return (np.asarray(adjusted) < LEVEL) & (np.asarray(seeds) >= FEWEST)


def largest(sizes: ArrayLike) -> NDArray[np.intp]:
    """The difference of a family that is named, [..., comparisons] -> [...]; it is chosen from all, so all must be in Holm's family."""
    return np.asarray(np.argmax(np.abs(np.asarray(sizes, np.float64)), axis=-1))


def seeds_needed(first: Sequence[float], second: Sequence[float], comparisons: int) -> int | None:
    """How many seeds of each side would decide a difference with :data:`POWER`; None if unknown or too many.

    It assumes the observed difference and deviations, and a test at level 0.05 / comparisons, Holm's strictest, with n - 1 degrees of
    freedom. The power is that of the noncentral t distribution, whose degrees of freedom are at most 2 (n - 1) and taken as n - 1, so the
    number errs on the large side. Observations of a few seeds are rough, and so is this number.
    """
    sides = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if min(map(len, sides)) < 2 or not (_spread(sides[0]) or _spread(sides[1])):
        return None
    difference = abs(float(sides[0].mean() - sides[1].mean()))
    variance = float(sides[0].var(ddof=1) + sides[1].var(ddof=1))
    if difference <= 1e-12 * math.sqrt(variance):
        return None
    from scipy import stats

    n = np.arange(FEWEST, MOST_SEEDS + 1)
    critical = stats.t.ppf(1 - LEVEL / comparisons / 2, n - 1)
    power: Reals = np.nan_to_num(
        stats.nct.sf(critical, n - 1, difference / np.sqrt(variance / n)), nan=1.0
    )  # it is nan in the far tail, where the power is 1
    enough = np.flatnonzero(power >= POWER)
    return int(n[enough[0]]) if len(enough) else None


def differences(results: Results, comparisons: Sequence[Comparison], table: CostTable) -> list[Difference]:
    """Every difference that a section declares, including those without finished seeds: they count among the comparisons, too.

    Raises:
        UserError: a comparison uses a measure that runs do not have.
    """
    found = [
        Difference(comparison, of, one, other, one.final(of), other.final(of))
        for comparison in comparisons
        for of in (measure(comparison.measure, table),)
        for one, other in pairs(results, comparison)
    ]
    ps = [float(difference_p(each.mine.values, each.others.values)) if each.mine and each.others else math.nan for each in found]
    return [
        Difference(
            each.comparison,
            each.measure,
            each.setting,
            each.other,
            each.mine,
            each.others,
            None if math.isnan(p) else p,
            None if math.isnan(p) else float(adjusted),
            seeds_needed(each.mine.values, each.others.values, len(found)) if each.mine and each.others else None,
        )
        for each, p, adjusted in zip(found, ps, holm(ps), strict=True)
    ]


def pairs(results: Results, comparison: Comparison) -> list[tuple[Setting, Setting]]:
    """Pairs of settings in `where` that agree on the axes `within` and, if that leaves any pairs, on all other axes, but for those that
    follow from the compared value, as the number of local steps from a method that has its own.
    """
    compared, within = axis(comparison.axis), [axis(name) for name in comparison.within]
    found: list[tuple[Setting, Setting]] = []
    theirs = results.others.get(comparison.beside, ())
    if comparison.beside and not theirs:
        return []
    within += [axis("dataset")] if comparison.beside else []
    among = narrowed([*results.settings, *theirs], comparison.where)
    named = (compared.name, *comparison.within)
    further = [each for each in results.axes if each.name not in named and not _follows(each, compared, among)]
    for group in _groups(among, within):
        divided = [] if theirs else [pair for part in _groups(group, further) for pair in _pairs(part, compared, comparison)]
        found += divided or _pairs(group, compared, comparison)
    foreign = {id(each) for each in theirs}
    return [pair for pair in found if id(pair[0]) not in foreign]


def _follows(one: Axis, other: Axis, settings: Sequence[Setting]) -> bool:
    """Whether an axis has one value at each value of the other."""
    pairs = {(other.of(setting.config), one.of(setting.config)) for setting in settings}
    return len(pairs) == len({value for value, _ in pairs})


def _groups(settings: Sequence[Setting], axes: Sequence[Axis]) -> list[list[Setting]]:
    groups: dict[tuple[Value, ...], list[Setting]] = {}
    for setting in settings:
        groups.setdefault(tuple(each.of(setting.config) for each in axes), []).append(setting)
    return list(groups.values())


def _pairs(settings: Sequence[Setting], compared: Axis, comparison: Comparison) -> list[tuple[Setting, Setting]]:
    only = [str(each) for each in comparison.only]
    of: dict[Value, list[Setting]] = {}
    for setting in settings:
        of.setdefault(compared.of(setting.config), []).append(setting)
    values = in_order(list(of))
    base = [value for value in values if comparison.refers_to(compared, value)]
    mine = [value for value in values if not only or compared.text(value) in only]
    chosen = [(value, base[0]) for value in mine if value != base[0]] if base else list(itertools.combinations(mine, 2))
    return [pair for one, other in chosen for pair in itertools.product(of[one], of[other])]
