"""fl_hydra: distributed and federated learning experiments, composed with Hydra and trained with PyTorch."""
