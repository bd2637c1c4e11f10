"""What clients hold and how often they come, drawn from a configuration without training."""
