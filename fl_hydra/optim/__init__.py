"""Local optimizers as rules over rows, and learning-rate schedules."""
