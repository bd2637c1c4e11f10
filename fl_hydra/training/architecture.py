"""What a model must be to be trained as a row of numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fl_hydra.data.dataset import DatasetInfo
from fl_hydra.errors import UserError, require
from fl_hydra.models.base import Model
from fl_hydra.training.layout import Layout
from fl_hydra.training.sample_cost import example, sample_bytes


@dataclass(frozen=True)
class Architecture:
    """A model, before it has parameters of a run.

    module: whose own parameters are never read. layout: of its parameters. sample_bytes: what one sample's forward pass keeps for its
    backward pass.
    """

    model: Model
    dataset_info: DatasetInfo
    module: nn.Module
    layout: Layout
    sample_bytes: int

    @classmethod
    def of(cls, model: Model, info: DatasetInfo) -> Architecture:
        """The architecture of a model for some samples.

        Raises:
            UserError: it does not fit them, or engines would train it differently.
        """
        module = model.build(info)
        check_architecture(module, info)
        return cls(model, info, module, Layout.of(module), sample_bytes(module, info))

    def build(self) -> nn.Module:
        """A fresh module."""
        return self.model.build(self.dataset_info)


def check_architecture(module: nn.Module, info: DatasetInfo) -> None:
    """Refuse, from one forward and backward pass of two samples, models that engines would train differently, or not at all.

    Raises:
        UserError: it has buffers, draws random numbers, or has parameters that are frozen or have no part in its output.
    """
    name = type(module).__name__
    buffers = [key for key, _ in module.named_buffers()]
    require(
        not buffers, f"model {name}: {_few(buffers)} are buffers, such as running statistics, which are not supported; use GroupNorm, say"
    )
    frozen = [key for key, parameter in module.named_parameters() if not parameter.requires_grad]
    require(not frozen, f"model {name}: {_few(frozen)} have requires_grad=False; every parameter is trained: leave that out")
    module.train()
    inputs = example(info, 2)  # some do with several samples what they do not with one
    try:
        with _Draws() as draws:
            output = module(inputs)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"model {name}: its forward pass ends with {type(error).__name__}: {reason}; mend the model") from error
    require(
        not draws.found,
        f"model {name}: its forward pass draws random numbers ({_few(draws.found)}), as Dropout does; they would differ from engine to "
        "engine and after an interruption: leave such layers out",
    )
    gradients = torch.autograd.grad(output.sum(), list(module.parameters()), allow_unused=True)
    unused = [key for (key, _), gradient in zip(module.named_parameters(), gradients, strict=True) if gradient is None]
    require(not unused, f"model {name}: {_few(unused)} have no part in its output; leave them out")


class _Draws(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes operations that draw from a generator."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if torch.Tag.nondeterministic_seeded in func.tags and name not in self.found:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
