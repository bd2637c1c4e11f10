"""Networks of timm (Wightman, PyTorch Image Models), by their names there."""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fl_hydra.errors import UserError, require
from fl_hydra.models.base import Model, image_sides, models

if TYPE_CHECKING:
    from torch import nn

    from fl_hydra.data.dataset import DatasetInfo


@models.register
@dataclass
class Timm(Model):
    """A network of timm, with weights drawn anew for the dataset's images and classes.

    A run's name also has the version of timm, since another one may draw or compute it in another way.
    """

    name: str = "timm"
    architecture: str = "resnet18"
    """Its name in timm: resnet18, convnext_atto, vit_tiny_patch16_224 and so on, as `timm.list_models()` has them."""

    @property
    def option(self) -> str:
        return f"timm {self.architecture}"

    def identity(self) -> dict[str, Any]:
        installed = importlib.util.find_spec("timm") is not None
        return {**super().identity(), "timm": importlib.metadata.version("timm") if installed else None}

    def check(self, info: DatasetInfo) -> None:
        image_sides("timm", info, 1)
        require(
            importlib.util.find_spec("timm") is not None,
            "model=timm: the package timm is not installed; pip install 'fl-hydra[timm]', or choose another model",
        )

    def build(self, info: DatasetInfo) -> nn.Module:
        """
        Raises:
            UserError: timm has no such network, cannot make it for these images, or it has no linear classifier of its own.
        """
        from torch import nn

        from fl_hydra.data.cifar100 import import_torchvision

        import_torchvision("torchvision")  # which timm imports
        timm = importlib.import_module("timm")
        if not timm.is_model(self.architecture):
            near = difflib.get_close_matches(self.architecture, timm.list_models(), n=3)
            meant = f"did you mean {' or '.join(near)}?" if near else "timm.list_models() has the names"
            raise UserError(f"model.architecture={self.architecture}: timm {timm.__version__} has no such network; {meant}")
        channels, height, width = info.shape
        config = timm.get_pretrained_cfg(self.architecture)
        sizes = {"img_size": (height, width)} if config is not None and config.fixed_input_size else {}
        try:
            module: Any = timm.create_model(self.architecture, num_classes=info.classes, in_chans=channels, **sizes)
            classifier = module.get_classifier()
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"model.architecture={self.architecture}: timm cannot make it for images of {height}x{width} pixels "
                f"({type(error).__name__}: {reason}); choose another"
            ) from error
        linear = [part for part in module.modules() if isinstance(part, nn.Linear)]
        require(
            bool(linear) and linear[-1] is classifier,
            f"model.architecture={self.architecture}: does not end with one linear layer, whose inputs are its features; choose another",
        )
        made: nn.Module = module
        return made
