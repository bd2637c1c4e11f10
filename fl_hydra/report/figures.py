"""Curves."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from fl_hydra.arrays import Reals
from fl_hydra.files import write_atomically
from fl_hydra.report.cost import CostTable, Ledger, Network, computing_seconds, read_ledger, wall_clock, wire_bytes
from fl_hydra.report.runs import Run, by_setting, state

STYLE: dict[Any, Any] = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 9,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "savefig.dpi": 150,
}

MEASURED = {"J": "local steps J", "noise_scale": "gradient noise scale, samples"}
"""Columns that only some runs have, and what their axes say."""


def draw_accuracy(runs: Sequence[Run], path: Path) -> list[Path]:
    """Validation and test accuracy against rounds (logarithmic: methods differ by orders of magnitude) and against samples.

    One line for each setting: the mean over the seeds that finished, with a band of one standard deviation; the legend says how many have
    if not all, and names settings of which none has. Where a rule chooses J, or the gradient noise scale was measured, a further panel has
    it against samples, of the settings that have it. Nothing is drawn if no run has finished.
    """
    settings = _finished(runs)
    if not any(group for _, group in settings):
        return []

    def has(group: list[Run], name: str) -> bool:
        return bool(group) and all(name in row for run in group for row in run.rows)

    measured = [name for name in MEASURED if any(has(group, name) for _, group in settings)]
    with _panels(2, 2, settings, path, below=bool(measured)) as (figure, axes):
        for index, (_, group) in enumerate(settings):
            for row, metric in enumerate(("val/acc", "test/acc") if group else ()):
                for column, x in enumerate(("round", "samples")):
                    _draw(axes[row, column], index, group, [_numbers(run.column(x)) for run in group], metric)
        for row, name in enumerate(("validation accuracy, %", "test accuracy, %")):
            _scale_logarithmically(axes[row, 0])
            axes[row, 0].set_ylabel(name)
        axes[1, 0].set_xlabel("rounds")
        axes[1, 1].set_xlabel("training samples processed")
        for axis, name in zip(axes[2:].flat, measured, strict=False):
            for index, (_, group) in enumerate(settings):
                if has(group, name):
                    _draw(axis, index, group, [_numbers(run.column("samples")) for run in group], name, scale=1)
            axis.set_ylabel(MEASURED[name])
            heights = np.concatenate([line.get_ydata() for line in axis.lines])
            heights = heights[heights > 0]  # there may be no noise scale yet
            if len(heights) and heights.max() > 3 * heights.min():
                _scale_logarithmically(axis, "y")
            axis.set_xlabel("training samples processed")
        for axis in axes[2:].flat[len(measured) :]:
            figure.delaxes(axis)
    return [path]


def draw_costs(runs: Sequence[Run], table: CostTable, path: Path) -> list[Path]:
    """Test accuracy against simulated seconds, against bytes on the wire, and against wall-clock time on the networks to draw.

    For the first device of the table. Logarithmic where settings differ much. Where bytes are the axis, a setting that sends nothing is a
    dotted line at its final accuracy. Seeds that did not finish are left out as they are in :func:`draw_accuracy`, and settings with runs
    that were made before runs counted all of it have no line; nothing is drawn if there are no others.
    """
    device = table.devices[0]

    def on(network: Network) -> Callable[[Ledger], float]:
        return lambda ledger: wall_clock(ledger, network, device, table.collective)

    panels: list[tuple[str, Callable[[Ledger], float]]] = [
        ("simulated seconds, without a network", lambda ledger: computing_seconds(ledger, device) + ledger.delay),
        ("MB on the wire for each worker", lambda ledger: wire_bytes(ledger, table.collective) / ledger.workers / 1e6),
        *((f"seconds on {network.name}", on(network)) for network in table.figure),
    ]
    settings, ledgers = [], []
    for label, group in _finished(runs):
        of_group = [[read_ledger(row, run.config) for row in run.rows] for run in group]
        complete = all(ledger is not None for of_run in of_group for ledger in of_run)
        settings.append((label if complete else f"{label} (no costs)", group if complete else []))
        ledgers.append([[ledger for ledger in of_run if ledger is not None] for of_run in of_group if complete])
    if not any(group for _, group in settings):
        return []
    costs = [[[np.array([cost(ledger) for ledger in of_run]) for of_run in of_group] for of_group in ledgers] for _, cost in panels]
    largest = np.array([[max((of_run[-1] for of_run in of_group), default=0.0) for of_group in of_panel] for of_panel in costs])
    differ = any(row.max() > 3 * row[row > 0].min() for row in largest if row.any())
    with _panels(-(-len(panels) // 2), 2, settings, path) as (figure, axes):
        for axis, (name, _), of_panel, most in zip(axes.flat, panels, costs, largest, strict=False):
            for index, (_, group) in enumerate(settings):
                if most[index] > 0:
                    _draw(axis, index, group, of_panel[index], "test/acc")
                elif group:
                    final = np.mean([_numbers(run.column("test/acc"))[-1] for run in group])
                    axis.axhline(100 * final, linestyle=(0, (2, 3)), color=_look(index)["color"])
            if any(group and not most[index] for index, (_, group) in enumerate(settings)):
                axis.text(0.98, 0.03, "dotted line: sends nothing", transform=axis.transAxes, ha="right", fontsize=8)
            if differ and most.any():
                _scale_logarithmically(axis)
            axis.set_xlabel(name)
        for axis in axes[:, 0]:
            axis.set_ylabel("test accuracy, %")
        for axis in axes.flat[len(panels) :]:
            figure.delaxes(axis)
    return [path]


def _finished(runs: Sequence[Run]) -> list[tuple[str, list[Run]]]:
    """The runs of each setting that finished, none perhaps, with a label that says how many if not all."""
    settings = []
    for label, group in by_setting(runs):
        finished = [run for run in group if run.finished]
        settings.append((label if len(finished) == len(group) else f"{label} ({state(group)})", finished))
    return settings


def _numbers(values: Sequence[float | None]) -> Reals:
    return np.array([np.nan if value is None else value for value in values], np.float64)


def _look(index: int) -> dict[str, Any]:
    """Ten colours, and then the same ones again in other dashes."""
    return {"color": f"C{index % 10}", "linestyle": ("-", "--", "-.", ":")[index // 10 % 4]}


def _draw(axis: Any, index: int, group: Sequence[Run], xs: Sequence[Reals], metric: str, scale: float = 100) -> None:
    """A metric times `scale` against `xs`, one array for each run: the mean over runs, with a band of one standard deviation.

    Where rounds differ in length, runs are evaluated after different numbers of samples: they are read off where the first one was.
    """
    grid = _numbers(group[0].column("samples"))
    samples = [_numbers(run.column("samples")) for run in group]
    values = scale * np.array([np.interp(grid, at, _numbers(run.column(metric))) for at, run in zip(samples, group, strict=True)])
    x = np.mean([np.interp(grid, at, x) for at, x in zip(samples, xs, strict=True)], axis=0)
    axis.plot(x, values.mean(0), **_look(index), marker="o" if len(x) == 1 else None, markersize=4)
    if len(values) > 1:
        deviation = values.std(0, ddof=1)
        axis.fill_between(x, values.mean(0) - deviation, values.mean(0) + deviation, color=_look(index)["color"], alpha=0.2, linewidth=0)


def _scale_logarithmically(axis: Any, which: str = "x") -> None:
    """A logarithmic axis, x or y, with plain numbers: powers of ten and, where there is room, 2 and 5 between them."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axis.set(**{f"{which}scale": "log"})
    low, high = getattr(axis, f"get_{which}lim")()
    ticks = getattr(axis, f"{which}axis")
    ticks.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 3000 * low else (1,)))
    ticks.set_major_formatter(StrMethodFormatter("{x:g}"))
    ticks.set_minor_formatter(NullFormatter())


@contextmanager
def _panels(
    rows: int, columns: int, settings: Sequence[tuple[str, list[Run]]], path: Path, below: bool = False
) -> Iterator[tuple[Any, Any]]:
    """A figure and its axes [rows, columns], with one y axis for all, and a legend of the settings below; written to `path` at the end.

    below: whether there is one more row, of panels that have y axes of their own.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.lines import Line2D

    labels = [label for label, _ in settings]
    across = max(1, min(3, 105 // max(map(len, labels), default=1)))
    size = (9, 2.6 * (rows + below) + 0.2 + 0.2 * -(-len(labels) // across))
    with pyplot.rc_context(STYLE):
        figure, axes = pyplot.subplots(rows + below, columns, figsize=size, squeeze=False, layout="constrained")
        try:
            for axis in axes[:rows].flat[1:]:
                axis.sharey(axes[0, 0])
            for axis in axes[:rows, 1:].flat:
                axis.tick_params(labelleft=False)
            yield figure, axes
            handles = [Line2D([], [], **(_look(index) if group else {"linestyle": "none"})) for index, (_, group) in enumerate(settings)]
            figure.legend(handles, labels, loc="outside lower center", ncols=across)
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png")
        finally:
            pyplot.close(figure)
    write_atomically(path, buffer.getvalue())
