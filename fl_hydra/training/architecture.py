"""What a model must satisfy to be trained as a row of numbers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fl_hydra.algorithms.base import Algorithm
from fl_hydra.data.dataset import DatasetInfo
from fl_hydra.errors import UserError, require
from fl_hydra.models.base import Model
from fl_hydra.seams.architectures import Architectures
from fl_hydra.seams.layout import BATCH_NORM, Layout, running_statistics
from fl_hydra.training.batch_layers import BatchLayers
from fl_hydra.training.sample_cost import example, sample_bytes


@dataclass(frozen=True)
class Architecture:
    """A model without the parameters of a run.

    module: its own parameters are never read. layout: of its parameters. sample_bytes: memory that one sample's forward pass keeps for
    its backward pass. least_batch: the smallest batch size for which its BatchNorm layers can compute a variance.
    """

    model: Model
    dataset_info: DatasetInfo
    algorithm: Algorithm
    module: nn.Module
    layout: Layout
    sample_bytes: int
    least_batch: int = 1

    @classmethod
    def of(cls, model: Model, info: DatasetInfo, algorithm: Algorithm) -> Architecture:
        """The architecture of a model for a dataset, with what a method adds to it.

        Raises:
            UserError: it does not fit them, or engines would train it differently.
        """
        module = algorithm.extend(model.build(info))
        layers = check_architecture(module, info, lambda: algorithm.extend(model.build(info)))
        layout = replace(Layout.of(module), random=layers.dropouts > 0)
        require(
            bool(layout.statistics.names) or model.statistics == "averaged",
            f"model.statistics={model.statistics}: model={model.option} has no BatchNorm, and so no running statistics; leave it out",
        )
        algorithm.check_layout(layout)
        if algorithm.personal(layout).width and algorithm.global_model:
            raise TypeError(f"{type(algorithm).__name__} leaves parameters with clients: there is no global_model, say so")
        samples = 2 if layout.statistics.names else 1  # a single sample may have no variance
        with _in_training(module, samples) if layout.modal else nullcontext():
            kept = sample_bytes(module, info, samples)
        return cls(model, info, algorithm, module, layout, kept, 1 + (layers.per_sample == 1))

    def build(self) -> nn.Module:
        """A fresh module."""
        return self.algorithm.extend(self.model.build(self.dataset_info))


def together(architectures: Sequence[Architecture]) -> Architectures:
    """The architectures of one run's clients.

    Raises:
        UserError: their outputs are of different shapes, or the method cannot train them.
    """
    inputs = example(architectures[0].dataset_info, 2)
    if len(architectures) > 1:
        with torch.no_grad():
            shapes = [tuple(copy.deepcopy(each.module).eval()(inputs).shape[1:]) for each in architectures]
        for each, shape in zip(architectures, shapes, strict=True):
            require(
                shape == shapes[0],
                f"algorithm.architectures: model={architectures[0].model.option} gives logits of shape {shapes[0]} for a sample, and "
                f"model={each.model.option} of shape {shape}; choose models with the same output",
            )
    made = Architectures(tuple(each.module for each in architectures), tuple(each.layout for each in architectures), inputs)
    architectures[0].algorithm.check_architectures(made)
    return made


def check_architecture(module: nn.Module, info: DatasetInfo, build: Callable[[], nn.Module]) -> BatchLayers:
    """Refuse models that engines would train differently or not at all, by passes of two samples; its layers, after a training pass.

    Args:
        module: is put into training mode. build: makes another module.

    Raises:
        UserError: it changes buffers other than BatchNorm's, draws random numbers other than dropout's, has parameters that do not affect
            its output, or has none to train; a BatchNorm keeps no running statistics; integers are drawn; its forward pass fails.
    """
    name = type(module).__name__
    for key, part in module.named_modules():
        if isinstance(part, BATCH_NORM):
            require(
                part.running_mean is not None and part.momentum is not None,
                f"model {name}: {key or name} has track_running_stats=False or momentum=None; leave that out: with the running statistics "
                "that PyTorch keeps by default a sample's logits do not depend on its batch",
            )
            part.num_batches_tracked = None  # only momentum=None needs it
    trained = {key: parameter for key, parameter in module.named_parameters() if parameter.requires_grad}
    require(bool(trained), f"model {name}: no parameter has requires_grad=True, and there is nothing to train")
    _check_integers(name, module, build)
    module.train()
    before = {key: buffer.clone() for key, buffer in module.named_buffers()}
    inputs = example(info, 2)  # some models behave differently with several samples than with one
    try:
        layers = _in_training(module, 2)
        with _Draws() as draws, layers:
            output = module(inputs)
        if layers.used:
            with BatchLayers(torch.float32):
                copy.deepcopy(module).eval()(inputs)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"model {name}: its forward pass ends with {type(error).__name__}: {reason}; mend the model") from error
    require(
        not draws.found,
        f"model {name}: its forward pass draws random numbers ({_few(draws.found)}), which would differ from engine to engine and after an "
        "interruption: leave such layers out; dropout of torch.nn is supported",
    )
    changed = [key for key, buffer in module.named_buffers() if not torch.equal(buffer, before[key])]
    require(
        not changed,
        f"model {name}: its forward pass changes {_few(changed)}; of running statistics those of BatchNorm are supported: use that, or "
        "GroupNorm",
    )
    gradients = torch.autograd.grad(output.sum(), list(trained.values()), allow_unused=True)
    unused = [key for key, gradient in zip(trained, gradients, strict=True) if gradient is None]
    require(not unused, f"model {name}: {_few(unused)} have no part in its output; leave them out")
    return layers


def _check_integers(name: str, module: nn.Module, build: Callable[[], nn.Module]) -> None:
    """Refuse integer tensors that differ from one module to the next: they are not drawn from the run's seed."""

    def found(module: nn.Module) -> dict[str, Tensor]:
        tensors = (dict(module.named_parameters()) | dict(module.named_buffers())).items()
        return {key: tensor for key, tensor in tensors if not tensor.is_floating_point() and not key.endswith("num_batches_tracked")}

    own = found(module)
    if not own:
        return
    other = found(build())
    drawn = [key for key, tensor in own.items() if key not in other or not torch.equal(tensor, other[key])]
    require(not drawn, f"model {name}: {_few(drawn)} are drawn when it is made, and only floating-point numbers may be; make them fixed")


def _in_training(module: nn.Module, samples: int) -> BatchLayers:
    """The layers for a module's pass in training, with arbitrary draws."""
    return BatchLayers(torch.float32, running_statistics(module), draws=torch.arange(samples))


class _Draws(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records operations that draw from a generator."""

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
