"""What the page holds of clients: what is theirs, and how probable they are in a round, each different one once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fl_hydra.arrays import Reals
from fl_hydra.report.figures.clients import CHARACTERS, CLIENTS, Holdings, read_clients, relative
from fl_hydra.runs.reading import Run

NAMED = {" ": "space", "\n": "newline"}


class Clients:
    """Of a section, as its settings are read.

    divisions: of the first seed of each setting: kind, names, sizes, clients (how many there are; at most CLIENTS are held) and values
    [clients][names], which are samples of a class, or how frequent a character is, as log2 of its frequency relative to that in all text.
    distributions: of every run: clients, and their probabilities, largest first; None: all alike.
    """

    def __init__(self) -> None:
        self.divisions: list[dict[str, Any]] = []
        self.distributions: list[dict[str, Any]] = []

    @property
    def skewed(self) -> bool:
        """Whether some client is more probable than another."""
        return any(each["probabilities"] for each in self.distributions)

    def of(self, runs: Sequence[Run]) -> dict[str, Any]:
        """Of a setting's runs: the indices of the first one's division and of each one's distribution; None where nothing was written."""
        read = [held if held is not None and len(held.sizes) > 1 else None for held in map(read_clients, runs)]
        counted = [(held, held.counts) for held in read if held is not None and held.counts is not None and held.counts.size]
        divisions = [_index(self.divisions, _division(held, counts)) for held, counts in counted[:1]]
        return {
            "division": divisions[0] if divisions else None,
            "distributions": [None if held is None else _index(self.distributions, _distribution(held)) for held in read],
        }


def _index(held: list[dict[str, Any]], one: dict[str, Any]) -> int:
    if one not in held:
        held.append(one)
    return held.index(one)


def _division(held: Holdings, counts: Reals) -> dict[str, Any]:
    sizes, drawn = counts.sum(1)[:CLIENTS], counts[:CLIENTS]
    names: list[str] = list(held.names)
    values: list[list[float]] = [[int(count) for count in row] for row in drawn]
    if held.kind == "characters":
        everywhere = counts.sum(0)
        shown = np.argsort(-everywhere, kind="stable")[: min(CHARACTERS, int((everywhere > 0).sum()))]
        names = [NAMED.get(held.names[code], held.names[code]) for code in shown]
        values = [[round(float(value), 2) for value in row] for row in relative(drawn, everywhere)[:, shown]]
    return {"kind": held.kind, "names": names, "clients": len(counts), "sizes": [int(size) for size in sizes], "values": values}


def _distribution(held: Holdings) -> dict[str, Any]:
    found = held.probabilities
    uneven = found is not None and not np.allclose(found, found[0])
    ordered = [float(f"{value:.4g}") for value in np.sort(found)[::-1]] if found is not None and uneven else None
    return {"clients": len(held.sizes), "probabilities": ordered}
