"""Datasets, their splits, shards and batches. Everything here but `augmentation` works in numpy, without torch."""
