"""Row rules as `torch.optim.Optimizer`s. Registries import this package, so that what imports torch is one level below."""
