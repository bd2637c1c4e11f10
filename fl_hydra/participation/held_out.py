"""Names of clients that are held out: `90-99`, or `3|7|90-99`."""

from __future__ import annotations

import re

import numpy as np

from fl_hydra.arrays import Indices
from fl_hydra.errors import require

Spans = tuple[tuple[int, int], ...]
"""First and last client of each span, ascending; no two of them touch."""


def spans(text: str) -> Spans:
    """The clients that a text names.

    Raises:
        UserError: it names none.
    """
    found: list[tuple[int, int]] = []
    for word in text.split("|"):
        match = re.fullmatch(r"\s*(\d{1,12})(?:-(\d{1,12}))?\s*", word)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        require(
            first <= last,
            f"participation.held_out={text}: {word.strip() or 'nothing'} names no clients; write numbers from 0 and ranges, as 90-99 or "
            "3|7|90-99",
        )
        found.append((first, last))
    merged: list[tuple[int, int]] = []
    for first, last in sorted(found):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return tuple(merged)


def spelled(named: Spans) -> str:
    """The one way in which these clients are written, so that equal ones make equal runs."""
    return "|".join(str(first) if first == last else f"{first}-{last}" for first, last in named)


def left_of(K: int, text: str | None) -> int:
    """How many of K clients are left, where a text names those that are held out."""
    return K - sum(last - first + 1 for first, last in (() if text is None else spans(text)))


def members(named: Spans) -> Indices:
    """The clients of these spans; int64, ascending."""
    return np.concatenate([np.zeros(0, np.int64), *(np.arange(first, last + 1) for first, last in named)])
