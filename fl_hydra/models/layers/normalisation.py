"""Normalisation of images' channels, by the names of `model.norm`."""

from __future__ import annotations

from torch import nn


def normalisation(norm: str, channels: int, groups: int) -> nn.Module:
    """A layer for inputs [n, channels, height, width], with a scale and a shift for each channel.

    Args:
        norm: `none`; `batch` (Ioffe and Szegedy 2015); `group` (Wu and He 2018); or `layer`, which is GroupNorm with one group: statistics
            of all channels and pixels of a sample (Ba et al. 2016).
        groups: of GroupNorm.
    """
    if norm == "none":
        return nn.Identity()
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    return nn.GroupNorm(1 if norm == "layer" else groups, channels)
