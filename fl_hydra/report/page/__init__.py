"""The interactive page of a report: one HTML file that needs nothing else, from the file system and without a network."""

from fl_hydra.report.page.writing import write_page

__all__ = ["write_page"]
