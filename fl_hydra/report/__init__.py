"""Figures and tables, made only from the files of runs."""
