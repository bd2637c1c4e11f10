"""How every figure looks: sizes of a two-column paper, text that is read there, and files that are the same for the same numbers."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fl_hydra.files import write_atomically

COLUMN, WIDE = 3.3, 6.9
"""Widths of a figure in inches: of one column and of both. Figures are set as they are, so points are points."""

SMALL = 7.0
"""The smallest text, in points."""

SHADES = ["#f0f5fa", "#9ecae1", "#2171b5", "#08306b"]
"""Of maps: darker is better."""

STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.labelsize": 8,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 8,
    "axes.titlepad": 3,
    "figure.constrained_layout.h_pad": 0.02,
    "figure.constrained_layout.w_pad": 0.02,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # it comes with matplotlib, so that figures are the same everywhere
    "font.size": 8,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.5,
    "hatch.linewidth": 0.5,
    "legend.fontsize": SMALL,
    "legend.frameon": False,
    "legend.handlelength": 2.2,
    "legend.columnspacing": 1.2,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
    "pdf.fonttype": 42,  # letters that can be searched for and copied
    "savefig.dpi": 200,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.minor.size": 1.5,
    "ytick.minor.size": 1.5,
}


@contextmanager
def blank(size: tuple[float, float]) -> Iterator[Any]:
    """A figure of so many inches without axes, closed at the end."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context(STYLE):
        figure = pyplot.figure(figsize=size, layout="constrained")
        try:
            yield figure
        finally:
            pyplot.close(figure)


@contextmanager
def canvas(rows: int, columns: int, size: tuple[float, float], **share: Any) -> Iterator[tuple[Any, Any]]:
    """The same with its axes [rows, columns]."""
    with blank(size) as figure:
        yield figure, figure.subplots(rows, columns, squeeze=False, **share)


def save(figure: Any, target: Path) -> list[Path]:
    """Write a figure as `target.pdf` and `target.png`, each whole or not at all; the files. No date is in them."""
    written = []
    for suffix, metadata in ((".pdf", {"Creator": None, "Producer": None, "CreationDate": None}), (".png", {"Software": None})):
        content = io.BytesIO()
        figure.savefig(content, format=suffix[1:], metadata=metadata)
        path = target.with_name(target.name + suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content.getvalue())
        written.append(path)
    return written
