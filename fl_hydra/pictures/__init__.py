"""What clients hold and how often they take part, drawn from a configuration without training."""
