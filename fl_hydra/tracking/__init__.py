"""Trackers: they follow what runs have written, and can neither change nor slow a run."""
