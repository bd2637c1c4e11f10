"""How the training images are divided among clients or workers."""
