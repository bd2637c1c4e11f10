"""How a module's parameters lie in one flat vector.

A model in training is a vector of P numbers, a round's workers are a matrix [rows, P]: optimizers and averages then need a
handful of kernels however many layers there are, a message is a vector, and a checkpoint is a tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import accumulate, compress

import torch
from torch import Tensor, nn

from fl_hydra.errors import require
from fl_hydra.optim.base import Layers
from fl_hydra.randomness import key

BATCH_NORM = nn.modules.batchnorm._BatchNorm

_NORMALISATIONS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, BATCH_NORM)


@dataclass(frozen=True)
class Columns:
    """Some of the parameters, as columns of vectors [..., P].

    names: of the parameters. slices: where they lie, in order, adjacent ones merged. layers: their layers, as optimizers see them.
    """

    names: tuple[str, ...]
    slices: tuple[slice, ...]
    layers: Layers

    @property
    def width(self) -> int:
        """How many columns there are."""
        return sum(self.layers.sizes)

    def of(self, vectors: Tensor) -> Tensor:
        """These columns of vectors [..., P]: [..., width], a view if they are contiguous, else a copy."""
        if len(self.slices) == 1:
            return vectors[..., self.slices[0]]
        return torch.cat([vectors[..., part] for part in self.slices], -1) if self.slices else vectors[..., :0]

    def write(self, vectors: Tensor, values: Tensor) -> None:
        """Write values [..., width] to these columns of vectors [..., P]; a view from :meth:`of` is already in place."""
        first = 0
        for part in self.slices:
            place = vectors[..., part]
            own = values[..., first : first + part.stop - part.start]
            first += part.stop - part.start
            if own.data_ptr() != place.data_ptr():
                place.copy_(own)


@dataclass(frozen=True)
class Tensors:
    """Names and unstacked shapes of a module's tensors that no optimizer steps, in the order in which they lie in their vector."""

    names: tuple[str, ...] = ()
    shapes: tuple[tuple[int, ...], ...] = ()

    @classmethod
    def of(cls, named: Mapping[str, Tensor]) -> Tensors:
        """The layout of some tensors."""
        return cls(tuple(named), tuple(tuple(tensor.shape) for tensor in named.values()))

    @property
    def sizes(self) -> list[int]:
        """The number of elements of each."""
        return [math.prod(shape) for shape in self.shapes]

    @property
    def size(self) -> int:
        """The length of the vector."""
        return sum(self.sizes)

    def views(self, vectors: Tensor) -> dict[str, Tensor]:
        """The tensors inside vectors [..., size], as views [..., *shape] by name."""
        return _views(self.names, self.shapes, vectors)


@dataclass(frozen=True)
class Layout:
    """Names and unstacked shapes of the parameters that are trained, in the order in which they lie in the vector.

    weights: whether each is a weight, that is, neither a bias nor a normalisation's parameter. modules: the class names of the modules to
    which they belong. head: the name of the last linear layer; None if there is none.
    statistics: BatchNorm's running means and variances, kept for each row. momenta: with which each of them is updated.
    frozen: parameters that are not trained, and other buffers; a run's constants, drawn with its initial weights.
    random: whether a layer draws random numbers in training, as dropout does. normalising: whether each belongs to a normalisation.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    weights: tuple[bool, ...]
    modules: tuple[str, ...]
    head: str | None
    statistics: Tensors = Tensors()
    momenta: tuple[float, ...] = ()
    frozen: Tensors = Tensors()
    random: bool = False
    normalising: tuple[bool, ...] = ()

    @classmethod
    def of(cls, module: nn.Module) -> Layout:
        """The layout of a module that :func:`fl_hydra.training.architecture.check_architecture` accepts."""
        named = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
        statistics = running_statistics(module)
        normalising = {id(p) for part in module.modules() if isinstance(part, _NORMALISATIONS) for p in part.parameters()}
        return cls(
            tuple(named),
            tuple(tuple(parameter.shape) for parameter in named.values()),
            tuple(parameter.dim() > 1 and id(parameter) not in normalising for parameter in named.values()),
            tuple(type(module.get_submodule(name.rpartition(".")[0])).__name__ for name in named),
            last_linear(module),
            Tensors.of(statistics),
            tuple(_momentum(module, name) for name in statistics),
            Tensors.of(frozen_tensors(module)),
            normalising=tuple(id(parameter) in normalising for parameter in named.values()),
        )

    @property
    def modal(self) -> bool:
        """Whether the model computes differently in training and in evaluation."""
        return self.random or bool(self.statistics.names)

    @property
    def sizes(self) -> list[int]:
        """The number of elements of each parameter."""
        return [math.prod(shape) for shape in self.shapes]

    @property
    def recurrent(self) -> bool:
        """Whether there is a recurrent layer, recognised by PyTorch's name for its weights."""
        return any("weight_hh" in name for name in self.names)

    @property
    def layers(self) -> Layers:
        """The layers, as optimizers see them."""
        return Layers(tuple(self.sizes), self.weights)

    @property
    def size(self) -> int:
        """P, the length of the vector."""
        return sum(self.sizes)

    def columns(self, chosen: Callable[[str, str], bool]) -> Columns:
        """The columns of the parameters for which `chosen(name, class name of its module)` holds; there may be none."""
        which = [chosen(name, module) for name, module in zip(self.names, self.modules, strict=True)]
        return _columns(self.names, self.sizes, self.weights, which)

    def others(self, columns: Columns) -> Columns:
        """All columns but these."""
        return self.columns(lambda name, module: name not in columns.names)

    @property
    def normalisations(self) -> Columns:
        """The columns of the parameters of BatchNorm, GroupNorm, LayerNorm and RMSNorm, and of modules derived from them."""
        return _columns(self.names, self.sizes, self.weights, self.normalising)

    def _matching(self, pattern: str) -> Columns:
        return self.columns(lambda name, module: fnmatchcase(name, pattern) or fnmatchcase(module, pattern))

    def select(self, pattern: str, key: str) -> Columns:
        """The columns of the parameters that a pattern chooses.

        Args:
            pattern: `none`, `all`, or `head` (the last linear layer), `body` (all else), and names of parameters or of module classes, with
                wildcards; several are separated by `|`, and each must match something.
            key: of the option that sets it, for messages.

        Raises:
            UserError: it matches no parameter.
        """
        if pattern in ("none", "all"):
            return self.columns(lambda name, module: pattern == "all")
        parts = {one: self._part(one, key) for one in pattern.split("|")}
        empty = [one for one, columns in parts.items() if not columns.names]
        which = "" if empty == [pattern] else f"{', '.join(empty)} "
        require(
            not empty,
            f"{key}={pattern}: {which}matches no parameter; choose none, all, head, body, or names, with wildcards, of parameters ("
            f"{', '.join(self.names)}) or of module classes ({', '.join(sorted(set(self.modules)))})",
        )
        return self.columns(lambda name, module: any(name in each.names for each in parts.values()))

    def _part(self, pattern: str, key: str) -> Columns:
        if pattern not in ("head", "body"):
            return self._matching(pattern)
        require(self.head is not None, f"{key}={pattern}: the model has no linear layer; choose a pattern of other parameters")
        return self.columns(lambda name, module: (name.rpartition(".")[0] == self.head) == (pattern == "head"))

    def views(self, vectors: Tensor) -> dict[str, Tensor]:
        """The parameters inside vectors [..., P], as views [..., *shape] by name; convolutions lie in channels_last order."""
        return _views(self.names, self.shapes, vectors)

    def whole(self, vectors: Tensor, statistics: Tensor | None, frozen: Tensor | None) -> Tensor:
        """Parameters [rows, P] followed by the rest of a model: statistics [rows or 1, size], frozen tensors [size]."""
        others = [values.expand(len(vectors), -1) for values in (statistics, frozen) if values is not None]
        return torch.cat([vectors, *others], 1) if others else vectors

    def whole_views(self, vectors: Tensor) -> dict[str, Tensor]:
        """All tensors inside whole models [..., P or more], as views by name."""
        size, statistics = self.size, self.statistics.size
        if vectors.shape[-1] == size:
            return self.views(vectors)
        parameters, running, frozen = torch.split(vectors, [size, statistics, vectors.shape[-1] - size - statistics], -1)
        return self.views(parameters) | self.statistics.views(running) | self.frozen.views(frozen)

    def statistics_beside(self, columns: Columns) -> Columns:
        """Columns of the running statistics of modules that have any of these parameters; of all modules if these are all parameters."""
        modules = {name.rpartition(".")[0] for name in columns.names}
        everything = columns.width == self.size
        running = self.statistics
        return _columns(
            running.names,
            running.sizes,
            (False,) * len(running.names),
            [everything or name.rpartition(".")[0] in modules for name in running.names],
        )

    def flat(self, parameters: Iterable[Tensor]) -> Tensor:
        """The inverse of :meth:`views`: tensors of the unstacked shapes, in order, as one vector [P]."""
        return flat(parameters)


def _views(names: Sequence[str], shapes: Sequence[tuple[int, ...]], vectors: Tensor) -> dict[str, Tensor]:
    if not names:
        return {}
    pieces = torch.split(vectors, [math.prod(shape) for shape in shapes], dim=-1)
    views, leading = {}, vectors.shape[:-1]
    for name, shape, piece in zip(names, shapes, pieces, strict=True):
        if len(shape) == 4:
            views[name] = piece.view(*leading, shape[0], shape[2], shape[3], shape[1]).movedim(-1, -3)
        else:
            views[name] = piece.view(*leading, *shape)
    return views


def flat(tensors: Iterable[Tensor]) -> Tensor:
    """Tensors flattened into one vector; convolutions in channels_last order."""
    return torch.cat([(p.permute(0, 2, 3, 1) if p.dim() == 4 else p).reshape(-1) for p in tensors])


def _columns(names: Sequence[str], sizes: Sequence[int], weights: Sequence[bool], which: Sequence[bool]) -> Columns:
    slices: list[slice] = []
    for taken, size, stop in zip(which, sizes, accumulate(sizes), strict=True):
        if taken and slices and slices[-1].stop == stop - size:
            slices[-1] = slice(slices[-1].start, stop)
        elif taken:
            slices.append(slice(stop - size, stop))
    return Columns(tuple(compress(names, which)), tuple(slices), Layers(tuple(compress(sizes, which)), tuple(compress(weights, which))))


def running_statistics(module: nn.Module) -> dict[str, Tensor]:
    """The running means and variances of BatchNorm in a module, by name."""
    return {
        f"{name}.{each}" if name else each: getattr(part, each)
        for name, part in module.named_modules()
        if isinstance(part, BATCH_NORM) and part.running_mean is not None
        for each in ("running_mean", "running_var")
    }


def frozen_tensors(module: nn.Module) -> dict[str, Tensor]:
    """A module's floating-point tensors that are neither trained nor running statistics, by name."""
    running = running_statistics(module)
    named: dict[str, Tensor] = {name: parameter for name, parameter in module.named_parameters() if not parameter.requires_grad}
    named |= {name: buffer for name, buffer in module.named_buffers() if name not in running}
    return {name: tensor for name, tensor in named.items() if tensor.is_floating_point()}


def _momentum(module: nn.Module, name: str) -> float:
    """The momentum with which a running statistic is updated."""
    return float(getattr(module.get_submodule(name.rpartition(".")[0]), "momentum", None) or 0.0)


def last_linear(module: nn.Module) -> str | None:
    """The name of a module's last linear layer, whose input is called the module's features."""
    return next((name for name, part in reversed(list(module.named_modules())) if isinstance(part, nn.Linear)), None)


def initial_module(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """A module with initial weights, drawn on the CPU by its own initialisation; they depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key(seed, "weights") & 0x7FFF_FFFF_FFFF_FFFF)
        return build()
