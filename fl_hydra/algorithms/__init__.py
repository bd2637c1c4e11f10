"""Methods of distributed and federated learning, each defined by its changes to the one loop."""
