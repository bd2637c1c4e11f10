"""Who is who: names at the ends of lines where there is room, else a legend; how many seeds, and what has no result."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from fl_hydra.report.colors import ink
from fl_hydra.report.figures.fitting import Fitted
from fl_hydra.report.figures.style import SMALL
from fl_hydra.report.results import Setting

MOST_MOVED = 2.5
"""How many heights a name may be moved from the end of its line, at most."""

MOST_LETTERS = 22
"""Letters of a name at the end of a line, at most."""

NEAR = 0.85
"""How far to the right lines end that have their names there, as a part of the axis."""

WRITTEN = (
    ("gamma=", "γ="),
    (" N_c", ""),
    ("N_c", "classes per client"),
    ("batch_size=", "batch "),
    ("post_local", "post-local"),
    ("server.lr=", "outer rate "),
    ("optimizer.lr", "learning rate"),
    ("optimizer.weight_decay", "weight decay"),
    ("weight_decay=", "weight decay "),
    ("lr=", "rate "),
    ("_", " "),
)
"""What is typed, and how a figure says it, in this order."""


def entries(plan: Fitted, marked: bool = True, parts: Sequence[tuple[str, Any]] = ()) -> tuple[list[Any], list[str]]:
    """Handles and names of a legend: colours, then dashes."""
    from matplotlib.lines import Line2D

    handles, names = [], []
    colors, markers, dashes = plan.colors, plan.markers, plan.dashes
    if plan.color:
        for value in plan.values(plan.color, drawn=True):
            handles.append(Line2D([], [], color=colors[value], marker=markers[value] if marked else None))
            names.append(pretty(plan.color.label(value)))
    if plan.dash:
        for value in plan.values(plan.dash, drawn=True):
            handles.append(Line2D([], [], color="0.3", linestyle=dashes[value]))
            names.append(pretty(plan.dash.label(value)))
    for name, style in parts:
        handles.append(Line2D([], [], color="0.3", linestyle=style))
        names.append(name)
    return handles, names


def legend(figure: Any, handles: Sequence[Any], names: Sequence[str], width: float) -> None:
    """One legend for all panels, above them, in as many columns as there is room for."""
    if not names:
        return
    letters = sorted(len(name) - 2 * name.count("$") for name in names)
    columns = len(names)
    while columns > 1 and sum(0.5 + 0.06 * each for each in letters[-columns:]) > width:
        columns -= 1
    columns = -(-len(names) // -(-len(names) // columns))  # rows of equal length
    figure.legend(handles, names, loc="outside upper center", ncols=columns, borderaxespad=0.1)


def pretty(words: str) -> str:
    """Keys as words, and letters as they are written: γ=0.1, batch 64. No subscripts, which would be too small to read."""
    words = re.sub(r"\bN_c=([\d,]+)", lambda found: f"{found[1]} class{'' if found[1] == '1' else 'es'}", words)
    for typed, written in WRITTEN:
        words = words.replace(typed, written)
    return words


Ends = Sequence[tuple[float, float, str, str]]
"""Of lines: x, height, name, colour."""


def at_ends(panels: Mapping[Any, Ends]) -> bool:
    """Write names to the right of panels, apart from each other; False, and nothing, where there is no room beside one."""
    if any(len(name) > MOST_LETTERS for ends in panels.values() for _, _, name, _ in ends):
        return False
    next(iter(panels)).get_figure(root=True).draw_without_rendering()
    places = {axis: _beside(axis, sorted(ends, key=lambda end: end[1])) for axis, ends in panels.items()}
    if not all(places.values()):
        return False
    for axis, ends in panels.items():
        for place, (x, height, name, color) in zip(places[axis], sorted(ends, key=lambda end: end[1]), strict=True):
            line = {"arrowstyle": "-", "color": color, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 3}
            look = {"color": ink(color), "fontsize": SMALL, "va": "center", "arrowprops": line}
            axis.annotate(pretty(name), (x, height), (1.03, place), "data", "axes fraction", **look)
    return True


def _beside(axis: Any, ends: Ends) -> list[float]:
    """Heights of names, as parts of the axis; none where there is no room."""
    step = 1.2 * SMALL / (axis.get_window_extent().height / axis.get_figure(root=True).dpi * 72)
    at = [axis.transAxes.inverted().transform(axis.transData.transform(end[:2])) for end in ends]
    if not at or min(float(x) for x, _ in at) < NEAR or len(ends) * step > 1.05:
        return []  # what leads to a name would cross other lines
    wanted = [float(y) for _, y in at]
    places = apart(wanted, step)
    far = any(abs(place - want) > MOST_MOVED * step for place, want in zip(places, wanted, strict=True))
    return [] if far or places[0] < 0 or places[-1] > 1 else places


def apart(wanted: Sequence[float], step: float) -> list[float]:
    """Places as near to those that are wanted (rising) as can be, at least `step` apart: neighbours that touch share their middle."""
    blocks: list[list[float]] = []  # of each: its middle, and how many are in it
    for each in wanted:
        blocks.append([each, 1])
        while len(blocks) > 1 and blocks[-1][0] - blocks[-2][0] < step * (blocks[-1][1] + blocks[-2][1]) / 2:
            (middle, many), (before, fewer) = blocks.pop(), blocks.pop()
            blocks.append([(middle * many + before * fewer) / (many + fewer), many + fewer])
    return [middle + step * (index - (many - 1) / 2) for middle, many in blocks for index in range(int(many))]


def seeds(settings: Sequence[Setting]) -> str:
    """`n=3`, `n=2-3`, or nothing where no run has finished."""
    numbers = sorted({len(setting.finished) for setting in settings if setting.finished})
    if not numbers:
        return ""
    return f"n={numbers[0]}" if len(numbers) == 1 else f"n={numbers[0]}–{numbers[-1]}"


def say_seeds(axis: Any, settings: Sequence[Setting]) -> None:
    """How many seeds, at the upper right of a panel."""
    axis.set_title(seeds(settings), loc="right", fontsize=SMALL, color="0.35")
