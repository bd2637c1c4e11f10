"""How a module's parameters lie in one flat vector.

A model in training is a vector of P numbers, a round's workers are a matrix [rows, P]: optimizers and averages then take a
handful of kernels whatever the number of layers, a message is a vector, and a checkpoint is a tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fl_hydra.optim.base import Layers
from fl_hydra.randomness import key

_NORMALISATIONS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._BatchNorm)


@dataclass(frozen=True)
class Layout:
    """Names and unstacked shapes of the parameters, in the order in which they lie in the vector.

    weights: whether each is a weight, and neither a bias nor a parameter of a normalisation.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    weights: tuple[bool, ...]

    @classmethod
    def of(cls, module: nn.Module) -> Layout:
        """The layout of a module, of which :func:`fl_hydra.training.architecture.check_architecture` has no complaint."""
        named = dict(module.named_parameters())
        normalising = {id(p) for part in module.modules() if isinstance(part, _NORMALISATIONS) for p in part.parameters()}
        return cls(
            tuple(named),
            tuple(tuple(parameter.shape) for parameter in named.values()),
            tuple(parameter.dim() > 1 and id(parameter) not in normalising for parameter in named.values()),
        )

    @property
    def sizes(self) -> list[int]:
        """Numbers of each parameter."""
        return [math.prod(shape) for shape in self.shapes]

    @property
    def recurrent(self) -> bool:
        """Whether there is a recurrent layer, by PyTorch's name for its weights."""
        return any("weight_hh" in name for name in self.names)

    @property
    def layers(self) -> Layers:
        """What an optimizer knows of it."""
        return Layers(tuple(self.sizes), self.weights)

    @property
    def size(self) -> int:
        """P, the length of the vector."""
        return sum(self.sizes)

    def views(self, vectors: Tensor) -> dict[str, Tensor]:
        """The parameters inside vectors [..., P], as views [..., *shape] by name; convolutions lie in channels_last order."""
        pieces = torch.split(vectors, self.sizes, dim=-1)
        views, leading = {}, vectors.shape[:-1]
        for name, shape, piece in zip(self.names, self.shapes, pieces, strict=True):
            if len(shape) == 4:
                views[name] = piece.view(*leading, shape[0], shape[2], shape[3], shape[1]).movedim(-1, -3)
            else:
                views[name] = piece.view(*leading, *shape)
        return views

    def flat(self, parameters: Iterable[Tensor]) -> Tensor:
        """The reverse: tensors of the unstacked shapes, in order, as one vector [P]."""
        return torch.cat([(p.permute(0, 2, 3, 1) if p.dim() == 4 else p).reshape(-1) for p in parameters])


def initial_vector(build: Callable[[], nn.Module], seed: int, dtype: torch.dtype) -> Tensor:
    """Initial parameters [P], drawn on the CPU by the module's own initialisation, as a function of the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key(seed, "weights") & 0x7FFF_FFFF_FFFF_FFFF)
        module = build()
    return Layout.of(module).flat(parameter.detach().to("cpu", dtype) for parameter in module.parameters())
