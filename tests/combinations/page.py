"""docs/combinations.md: what cannot be chosen together, and why."""

from __future__ import annotations

from collections.abc import Iterable

from tests.combinations.table import FACTORS, refusals
from tests.support.make import PROJECT

PAGE = PROJECT / "docs" / "combinations.md"

HEAD = """\
# What goes together

Two options of different groups can be chosen together, except those of a line below: they are refused before anything trains, and
the line is what the program says, with `...` for the options. So every method goes with every engine and in packs, and, but for these
lines, with every local optimizer, outer optimizer (`server=`), scheme of participation, division of the data, average of models
(`swa.start=`) and uplink.

`tests/combinations` holds the program to this. It trains runs of two rounds in which all other pairs of options occur, every member of
a pack also alone, with the same bits. Methods and uplinks are all there are; of the other groups it takes an option of each kind:
{options}. A method that is another one with other options (`fedadam` is `fedavg` with `server=fedadam`) goes with what that one goes
with.

`make combinations` writes this page.

| these | do not go with these | because |
| --- | --- | --- |
"""


def page() -> str:
    """The page as it should be."""
    shown = [
        words for factor, every in FACTORS.items() if factor not in ("algorithm", "uplink", "engine", "pack", "swa") for words in every
    ]
    options = ", ".join(f"`{words}`" for words in shown)
    return HEAD.format(options=options) + "".join(f"| {_options(these)} | {_options(those)} | {why} |\n" for these, those, why in _lines())


def _lines() -> list[tuple[tuple[str, ...], tuple[str, ...], str]]:
    """Each reason, with everything that it keeps from everything."""
    partners: dict[tuple[str, str], list[str]] = {}
    order = list(FACTORS)
    for pair, why in refusals().items():
        (_, one), (_, other) = sorted(pair, key=lambda value: order.index(value[0]))
        for words in (*one.split(), *other.split()):
            group, _, option = words.partition("=")
            why = why.replace(words, f"{group}=...") if option else why
        partners.setdefault((one, why), []).append(other)
    lines: dict[tuple[tuple[str, ...], str], list[str]] = {}
    for (one, why), others in partners.items():
        lines.setdefault((tuple(others), why), []).append(one)
    return [(tuple(ones), others, why) for (others, why), ones in lines.items()]


def _options(words: Iterable[str]) -> str:
    return ", ".join(f"`{each}`" for each in words)
