"""Datasets, their splits, shards and batches. Everything here works in numpy, without torch."""
