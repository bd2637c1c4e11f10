"""Curves."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fl_hydra.files import write_atomically
from fl_hydra.report.runs import Run, by_setting

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


def draw_accuracy(runs: Sequence[Run], path: Path) -> Path:
    """Validation and test accuracy against rounds (logarithmic: methods differ by orders of magnitude) and against samples.

    One line for each setting: the mean over its seeds, with a band of one standard deviation.
    """
    import matplotlib

    matplotlib.use("Agg")
    import numpy as np
    from matplotlib import pyplot

    with pyplot.rc_context(STYLE):
        figure, axes = pyplot.subplots(2, 2, figsize=(9, 5.6), sharey=True, layout="constrained")
        for index, (label, group) in enumerate(by_setting(runs)):
            finished = [run for run in group if run.status == "finished"]
            for row, metric in enumerate(("val/acc", "test/acc") if finished else ()):
                values = 100 * np.array([[np.nan if v is None else v for v in run.column(metric)] for run in finished])
                for column, x in enumerate(("round", "samples")):
                    at = finished[0].column(x)
                    axes[row, column].plot(at, values.mean(0), color=f"C{index}", label=label)
                    if len(values) > 1:
                        low, high = values.mean(0) - values.std(0, ddof=1), values.mean(0) + values.std(0, ddof=1)
                        axes[row, column].fill_between(at, low, high, color=f"C{index}", alpha=0.2, linewidth=0)
        for row, name in enumerate(("validation accuracy, %", "test accuracy, %")):
            axes[row, 0].set(xscale="log", ylabel=name)
        axes[1, 0].set_xlabel("rounds")
        axes[1, 1].set_xlabel("training samples processed")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        pyplot.close(figure)
    write_atomically(path, buffer.getvalue())
    return path
