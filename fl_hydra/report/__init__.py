"""Figures and tables, made only from what runs wrote."""
