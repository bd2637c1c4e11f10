"""Whether a difference between two settings holds, over everything that a section compares, and how many seeds would tell."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fl_hydra.arrays import Reals
from fl_hydra.report.axes import Axis, Value, axis, in_order
from fl_hydra.report.cost import CostTable
from fl_hydra.report.measures import Measure, measure
from fl_hydra.report.results import Results, Setting, Statistic
from fl_hydra.report.spec import Comparison

LEVEL = 0.05
"""The probability with which a section may claim anything where nothing differs."""

POWER = 0.8
"""The probability with which so many seeds would decide a difference, if it is as large as it looks."""

FEWEST = 3
"""Seeds of each side without which nothing is claimed."""

MOST_SEEDS = 1000
"""More are not counted: nobody trains so many."""


@dataclass(frozen=True)
class Difference:
    """A setting against another on one axis, all else that is compared being the same.

    setting, other: what is compared, and with what. mine, others: their figures; None where no seed has finished. p: of Welch's test;
    None where there is none. adjusted: by Holm, over the whole section. seeds: of each side, that would decide it; None where that
    cannot be told.
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
        """Whether there are figures of both."""
        return self.mine is not None and self.others is not None

    @property
    def size(self) -> float:
        """The difference of the means; 0 where one is not known."""
        return self.mine.mean - self.others.mean if self.mine is not None and self.others is not None else 0.0

    @property
    def n(self) -> int:
        """Seeds of the side that has fewer."""
        return min(self.mine.n, self.others.n) if self.mine is not None and self.others is not None else 0

    @property
    def holds(self) -> bool:
        """Whether it may be claimed."""
        return self.n >= FEWEST and self.adjusted is not None and self.adjusted < LEVEL


def welch(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Two-sided p of Welch's t test (Biometrika 34, 1947); None where there is no test: a side of one seed, or no spread on either side.

    Runs of the same seed begin with the same weights and shards, and could be taken as pairs. But their courses part within a few steps,
    so that little is shared at the end, and pairs of three seeds leave 2 degrees of freedom where Welch has up to 4. Whatever pairs do
    share makes this test more careful, not less; and it needs no seed that both sides have finished.
    """
    from scipy import stats

    if min(len(first), len(second)) < 2 or not (_spread(first) or _spread(second)):
        return None
    described = [each for side in (first, second) for each in (np.mean(side), np.std(side, ddof=1), len(side))]
    return float(stats.ttest_ind_from_stats(*described, equal_var=False).pvalue)  # which does not warn of a side without spread


def _spread(values: Sequence[float]) -> bool:
    """Whether they differ by more than rounding: of equal values the test would divide by next to nothing."""
    return max(values) - min(values) > 1e-9 * max(1e-300, *(abs(value) for value in values))


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Adjusted p (Holm, Scandinavian Journal of Statistics 6, 1979): below a level with that probability for any of all, if none differs.

    Comparisons without a test count among all, as they were asked, too.
    """
    known = sorted((p, place) for place, p in enumerate(ps) if p is not None)
    adjusted: list[float | None] = [None] * len(ps)
    largest = 0.0
    for rank, (p, place) in enumerate(known):
        largest = max(largest, min(1.0, (len(ps) - rank) * p))
        adjusted[place] = largest
    return adjusted


def seeds_needed(first: Sequence[float], second: Sequence[float], comparisons: int) -> int | None:
    """How many seeds of each side would decide a difference with :data:`POWER`; None where that cannot be told, or takes too many.

    As if the difference and the deviations were those that were observed: Welch's test at level 0.05 / comparisons, Holm's strictest,
    whose power is that of the noncentral t distribution with (n - 1) (a + b)^2 / (a^2 + b^2) degrees of freedom, a and b the variances.
    What is observed of a few seeds is rough, and so is this number.
    """
    if min(len(first), len(second)) < 2 or not (_spread(first) or _spread(second)):
        return None
    difference = abs(float(np.mean(first) - np.mean(second)))
    a, b = float(np.var(first, ddof=1)), float(np.var(second, ddof=1))
    if difference <= 1e-12 * math.sqrt(a + b):
        return None
    from scipy import stats

    n = np.arange(FEWEST, MOST_SEEDS + 1)
    freedom = (n - 1) * (a + b) ** 2 / (a * a + b * b)
    shift = difference / np.sqrt((a + b) / n)
    critical = stats.t.ppf(1 - LEVEL / comparisons / 2, freedom)
    power: Reals = np.nan_to_num(stats.nct.sf(critical, freedom, shift), nan=1.0)  # far out in the tail it is not computed, and is 1
    enough = np.flatnonzero(power >= POWER)
    return int(n[enough[0]]) if len(enough) else None


def differences(results: Results, comparisons: Sequence[Comparison], table: CostTable) -> list[Difference]:
    """Every difference that a section declares, also those of which no seed has finished: they count among all that are asked.

    Raises:
        UserError: a comparison is of a figure that runs do not have.
    """
    found = [
        Difference(comparison, of, one, other, one.final(of), other.final(of))
        for comparison in comparisons
        for of in (measure(comparison.measure, table),)
        for one, other in pairs(results, comparison)
    ]
    tested = [welch(each.mine.values, each.others.values) if each.mine and each.others else None for each in found]
    return [
        Difference(
            each.comparison,
            each.measure,
            each.setting,
            each.other,
            each.mine,
            each.others,
            p,
            adjusted,
            seeds_needed(each.mine.values, each.others.values, len(found)) if each.mine and each.others else None,
        )
        for each, p, adjusted in zip(found, tested, holm(tested), strict=True)
    ]


def pairs(results: Results, comparison: Comparison) -> list[tuple[Setting, Setting]]:
    """What is compared: settings alike on the axes `within`, and on all others on which some differ, if that pairs any."""
    compared, within = axis(comparison.axis), [axis(name) for name in comparison.within]
    further = [each for each in results.axes if each.name != compared.name and each.name not in comparison.within]
    found: list[tuple[Setting, Setting]] = []
    for group in _groups(results.settings, within):
        divided = [pair for part in _groups(group, further) for pair in _pairs(part, compared, comparison.against)]
        found += divided or _pairs(group, compared, comparison.against)
    return found


def _groups(settings: Sequence[Setting], axes: Sequence[Axis]) -> list[list[Setting]]:
    groups: dict[tuple[Value, ...], list[Setting]] = {}
    for setting in settings:
        groups.setdefault(tuple(each.of(setting.config) for each in axes), []).append(setting)
    return list(groups.values())


def _pairs(settings: Sequence[Setting], compared: Axis, against: object) -> list[tuple[Setting, Setting]]:
    of: dict[Value, list[Setting]] = {}
    for setting in settings:
        of.setdefault(compared.of(setting.config), []).append(setting)
    values = in_order(compared, list(of))
    wanted = compared.text(against) if isinstance(against, int | float) else str(against)
    base = [value for value in values if against is not None and compared.text(value) == wanted]
    chosen = [(value, base[0]) for value in values if value != base[0]] if base else list(itertools.combinations(values, 2))
    return [pair for one, other in chosen for pair in itertools.product(of[one], of[other])]
