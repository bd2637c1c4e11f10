"""How the training samples are divided among clients or workers."""
