"""Layers that PyTorch does not have in a form that rows can share. Apart, because models are imported without torch."""
