"""Row rules as `torch.optim.Optimizer`s. Registries import this package, so only its modules import torch."""
