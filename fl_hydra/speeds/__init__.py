"""How fast workers are."""
