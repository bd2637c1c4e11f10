"""Searches for hyper-parameters, and what was chosen by them."""
