"""Layers that PyTorch has not, or not for many models at once. (Modules here may import torch; those of `fl_hydra.models` may not.)"""
