"""A run on the disk: its name, its folder, its checkpoints and metrics, and how it ends."""
