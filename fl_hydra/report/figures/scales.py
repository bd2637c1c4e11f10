"""Axes: units that suit what is shown, and logarithms with plain numbers."""

from __future__ import annotations

import re
from typing import Any

MUCH = 3.0
"""How many times as large the largest value must be for a logarithmic axis."""

COUNTED = ("epoch", "round", "J")
"""Measures with whole numbers at their axes."""

LARGER: dict[str, tuple[tuple[float, str], ...]] = {
    "MB": ((1, "MB"), (2e3, "GB"), (2e6, "TB")),
    "s": ((1, "s"), (600, "min"), (3 * 3600, "h")),
    "GFLOP": ((1, "GFLOP"), (2e3, "TFLOP"), (2e6, "PFLOP")),
    "training samples": ((1, "training samples"), (1e4, "training samples, thousands"), (2e6, "training samples, millions")),
}
"""By unit: from which value on which other one is taken."""

FACTORS = {
    "GB": 1e-3,
    "TB": 1e-6,
    "min": 1 / 60,
    "h": 1 / 3600,
    "TFLOP": 1e-3,
    "PFLOP": 1e-6,
    "training samples, thousands": 1e-3,
    "training samples, millions": 1e-6,
}


def suited(title: str, largest: float) -> tuple[str, float]:
    """A title with a unit that suits the largest value, and what values are to be multiplied with."""
    unit = title.rpartition(", ")[2]
    name = unit
    for least, other in LARGER.get(unit, ()):
        if largest >= least:
            name = other
    return title.removesuffix(unit) + name, FACTORS.get(name, 1.0)


def logarithmic(axis: Any, which: str, base: int = 10) -> None:
    """A logarithmic axis, x or y, with plain numbers: powers of ten and, where there is room, others between them."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    axis.set(**{f"{which}scale": "log"})
    low, high = getattr(axis, f"get_{which}lim")()
    ticks = getattr(axis, f"{which}axis")
    ratio = high / low
    if base != 10:
        ticks.set_major_locator(LogLocator(base, numticks=7))
        ticks.set_minor_locator(NullLocator())
    else:
        ticks.set_major_locator(
            LogLocator(subs=(1, 2, 5) if ratio < 40 else (1, 3) if ratio < 1000 else (1,), numticks=6 if ratio > 1000 else 12)
        )
    ticks.set_major_formatter(FuncFormatter(lambda value, _: plain(value)))
    ticks.set_minor_formatter(NullFormatter())


def whole(axis: Any) -> None:
    """Whole numbers alone at an axis (`axes.xaxis`), unless less than one lies on it."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(5, integer=True))


def plain(value: float) -> str:
    """A number on an axis: 1e-6, 0.01, 20, 10k, 5M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):g}{letter}"
    return re.sub(r"e([+-])0*", lambda found: f"e{found[1].replace('+', '')}", f"{value:g}")
