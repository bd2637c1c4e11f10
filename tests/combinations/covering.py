"""Rows of choices in which every pair that goes together occurs.

Ready-made generators cover all pairs and leave out rows that a filter refuses; what else those rows held is then missing. Here a row is
grown from a pair that is left, only by what goes together with all of it, so that nothing is masked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

Value = tuple[str, str]
"""A factor, and one of its options."""
Pair = frozenset[Value]


def pairs_of(row: Mapping[str, str]) -> set[Pair]:
    """Every two choices of a row."""
    return {frozenset(two) for two in combinations(row.items(), 2)}


def all_pairs(factors: Mapping[str, Sequence[str]]) -> list[Pair]:
    """Every two options of different factors, in order."""
    return [frozenset({(one, a), (other, b)}) for one, other in combinations(factors, 2) for a in factors[one] for b in factors[other]]


def covering(factors: Mapping[str, Sequence[str]], refused: set[Pair], works: Callable[[Mapping[str, str]], bool]) -> list[dict[str, str]]:
    """Rows in which each pair that is not refused occurs at least once.

    A row that does not work although all of its pairs do loses factors, which are then as the method chooses, until it works.

    Args:
        factors: options by factor; those with many come first.
        works: of a row, or of a part of one.
    """
    left = dict.fromkeys(pair for pair in all_pairs(factors) if pair not in refused)
    rows: list[dict[str, str]] = []
    while left:
        first = next(iter(left))
        row = dict(sorted(first))
        for factor, options in factors.items():
            if factor in row:
                continue
            turned = [*options[len(rows) % len(options) :], *options[: len(rows) % len(options)]]
            best: tuple[int, str] | None = None
            for option in turned:
                new = [frozenset({(factor, option), value}) for value in row.items()]
                if any(pair in refused for pair in new):
                    continue
                gain = sum(pair in left for pair in new)
                if (best is None or gain > best[0]) and works({**row, factor: option}):
                    best = gain, option
            if best is not None:
                row[factor] = best[1]
        for pair in pairs_of(row):
            left.pop(pair, None)
        rows.append(row)
    return rows
