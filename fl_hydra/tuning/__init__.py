"""Hyper-parameter searches, and the values that they chose."""
