"""Methods of distributed and federated learning: each is what it changes in the one loop."""
