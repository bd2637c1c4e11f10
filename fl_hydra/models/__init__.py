"""Models, and the flat vector that holds a model's parameters."""
