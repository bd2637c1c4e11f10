"""Every image model in a size for tests."""

from __future__ import annotations

from fl_hydra.models.base import Model
from fl_hydra.models.convmixer import ConvMixer
from fl_hydra.models.convnext import ConvNeXt
from fl_hydra.models.lenet import LeNet
from fl_hydra.models.resnet import ResNet
from fl_hydra.models.vit import ViT

TINY_MODELS: dict[str, Model] = {
    "lenet-batch": LeNet(norm="batch"),
    "lenet-layer": LeNet(norm="layer"),
    "resnet-batch": ResNet(blocks=1, width=4),
    "resnet-group": ResNet(blocks=1, width=4, norm="group"),
    "vit": ViT(patch=8, width=8, depth=1, heads=2, hidden=8),
    "convnext": ConvNeXt(patch=4, width=4, depth=1, stages=2, kernel=3),
    "convmixer": ConvMixer(patch=4, width=4, depth=1, kernel=3),
}
