"""Figures of a section: `draw_figures`, `draw_runs` for any runs, `captions` for their captions."""

from fl_hydra.report.figures.captions import captions
from fl_hydra.report.figures.drawing import draw_figures, draw_runs
from fl_hydra.report.figures.style import COLUMN, STYLE, WIDE

__all__ = ["COLUMN", "STYLE", "WIDE", "captions", "draw_figures", "draw_runs"]
