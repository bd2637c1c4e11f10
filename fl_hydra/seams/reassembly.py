"""Models taken apart into layers, and put together again from layers of several (Wang et al., NeurIPS 2023, section 3.2)."""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import prod

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from fl_hydra.arrays import Indices
from fl_hydra.errors import require
from fl_hydra.seams.architectures import Architectures
from fl_hydra.seams.layout import Layout
from fl_hydra.seams.operations import counter
from fl_hydra.seams.rows import Outputs, Rows

Shape = tuple[int, ...]
Recipe = tuple[tuple[int, int], ...]
"""The layers of a model in order, each by the number of its architecture and its place in it."""

CONVOLUTION, LINEAR = "convolution", "linear"
_KINDS = {nn.Conv2d: CONVOLUTION, nn.Linear: LINEAR}
_BESIDE = (nn.GroupNorm, nn.LayerNorm)


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer, with what comes between it and the next one.

    kind: CONVOLUTION or LINEAR. place: its number among the layers of this kind. parts: its modules, by their names in the whole model.
    inputs, outputs: shapes for one sample.
    """

    kind: str
    place: int
    first: bool
    last: bool
    parts: tuple[str, ...]
    inputs: Shape
    outputs: Shape

    @property
    def order(self) -> tuple[int, int]:
        """Where it stands in any model: a first layer first and a last one last, between them convolutions before linear layers, each kind
        in the order that they had. A model has one layer at most of each order."""
        return (0, 0) if self.first else (3, 0) if self.last else (1 if self.kind == CONVOLUTION else 2, self.place)


def layers_of(module: nn.Module, example: Tensor) -> tuple[Layer, ...]:
    """The layers of a model.

    Raises:
        UserError: it is not a sequence of layers, or has only one.
    """
    name = type(module).__name__
    parts = {key: part for key, part in module.named_modules() if not isinstance(part, nn.Sequential)}
    plain = all(type(part) in _KINDS or isinstance(part, _BESIDE) or _empty(part) for part in parts.values())
    nested = any(isinstance(module.get_submodule(key.rpartition(".")[0]), nn.Sequential) is False for key in parts)
    require(
        isinstance(module, nn.Sequential) and plain and not nested and not _frozen(module),
        f"algorithm=pfedhr: takes models apart that are convolutions and linear layers in sequence, and {name} is another one; choose "
        "lenet, lenet_gn, lenet_ln or small",
    )
    groups: list[list[str]] = []
    waiting: list[str] = []
    for key, part in parts.items():
        if type(part) in _KINDS:
            groups.append([*waiting, key])
            waiting = []
        elif not groups or isinstance(part, nn.Flatten):  # belongs to the layer that it is for
            waiting.append(key)
        else:
            groups[-1] += [*waiting, key]
            waiting = []
    require(len(groups) > 1 and not waiting, f"algorithm=pfedhr: {name} has {len(groups)} layers; choose a model that has at least 2")
    found, counts, values = [], {CONVOLUTION: 0, LINEAR: 0}, example
    copied = copy.deepcopy(module).to(example.device).eval()
    with torch.no_grad():
        for position, keys in enumerate(groups):
            kind = next(_KINDS[type(parts[key])] for key in keys if type(parts[key]) in _KINDS)
            before = tuple(values.shape[1:])
            for key in keys:
                values = copied.get_submodule(key)(values)
            last = position == len(groups) - 1
            found.append(Layer(kind, counts[kind], position == 0, last, tuple(keys), before, tuple(values.shape[1:])))
            counts[kind] += 1
    return tuple(found)


def _empty(part: nn.Module) -> bool:
    return not any(True for _ in part.parameters()) and not any(True for _ in part.buffers())


def _frozen(module: nn.Module) -> bool:
    return any(not parameter.requires_grad for parameter in module.parameters())


class Pool(nn.Module):
    """Means over windows that cover images, of a size that need not divide theirs: those of `nn.AdaptiveAvgPool2d`, whose gradients on a
    GPU are not the same each time."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.height, self.width = height, width

    def forward(self, images: Tensor) -> Tensor:
        """Images [n, channels, any, any] -> [n, channels, height, width]."""
        rows, columns = (_windows(there, here).to(images) for there, here in zip(images.shape[2:], (self.height, self.width), strict=True))
        return rows @ images @ columns.mT


def _windows(there: int, here: int) -> Tensor:
    """The weights of `there` pixels in the means of `here` windows, [here, there]."""
    found = torch.zeros(here, there, dtype=torch.float64)
    for window in range(here):
        first, last = window * there // here, -(-(window + 1) * there // here)
        found[window, first:last] = 1 / (last - first)
    return found


SIDE = 4
"""Pixels, at most, of an image's side that a stitch leads to a vector."""


def stitch(before: Shape, after: Shape) -> nn.Module | None:
    """What leads from outputs of one shape to inputs of another, linearly; None if they are the same. It has no parameters of a run.

    Between images: pooling to the size, and a convolution of single pixels to the channels. To or from a vector: a linear layer, behind
    pooling where an image has more than SIDE pixels.
    """
    if before == after:
        return None
    parts: list[nn.Module] = []
    if len(before) == 3:
        sides = after[1:] if len(after) == 3 else tuple(min(side, SIDE) for side in before[1:])
        parts += [] if before[1:] == sides else [Pool(*sides)]
        before = (before[0], *sides)
    with torch.device("meta"):
        if len(before) == len(after) == 3:
            parts += [] if before[0] == after[0] else [nn.Conv2d(before[0], after[0], 1)]
        else:
            parts += [nn.Flatten(), nn.Linear(prod(before), prod(after)), nn.Unflatten(1, after)]
    return nn.Sequential(*parts)


@dataclass(frozen=True)
class Passes:
    """Floating-point operations for one sample: of a forward pass, and of one with its backward pass."""

    forward: int
    both: int


@dataclass(frozen=True)
class Model:
    """A model that was put together. module: without parameters of a run. layout: of these."""

    module: nn.Module
    layout: Layout

    def logits(self, vector: Tensor, inputs: Tensor) -> Tensor:
        """For inputs [n, ...] and parameters [P or more]: [n, classes]."""
        views = self.layout.views(vector[: self.layout.size])
        found: Tensor = functional_call(self.module, views, (inputs.to(vector.dtype),))
        return found


class Library:
    """The layers of a run's architectures, and the models that can be made of them.

    Raises:
        UserError: as :func:`layers_of`.
    """

    def __init__(self, architectures: Architectures) -> None:
        self.architectures = architectures
        self.layers = [layers_of(module, architectures.example) for module in architectures.modules]
        self._made = threading.local()  # a module cannot be called with parameters of its own by two threads at once

    @staticmethod
    @lru_cache(maxsize=8)
    def of(architectures: Architectures) -> Library:
        """The library of some architectures, made once."""
        return Library(architectures)

    @property
    def classes(self) -> int:
        """Of logits."""
        return int(self.layers[0][-1].outputs[0])

    @cached_property
    def most(self) -> int:
        """The most layers of a model."""
        return len({layer.order for layers in self.layers for layer in layers})

    @cached_property
    def width(self) -> int:
        """No candidate has more parameters: the largest layer of each order, behind the largest stitch that may lead to it; of one
        architecture, its own."""
        if len(self.layers) == 1:
            return self.architectures.layouts[0].size
        by_order: dict[tuple[int, int], list[tuple[int, Layer]]] = {}
        for number, layers in enumerate(self.layers):
            for layer in layers:
                by_order.setdefault(layer.order, []).append((number, layer))
        total = 0
        for order, here in by_order.items():
            total += max(self._size(number, layer) for number, layer in here)
            before = [layer.outputs for earlier, some in by_order.items() if earlier < order for _, layer in some]
            total += max((_count(stitch(outputs, layer.inputs)) for outputs in before for _, layer in here), default=0)
        return total

    def _size(self, number: int, layer: Layer) -> int:
        module = self.architectures.modules[number]
        return sum(_count(module.get_submodule(key)) for key in layer.parts)

    def model(self, recipe: Recipe) -> Model:
        """The model of these layers, with stitches between those that do not fit."""
        made: dict[Recipe, Model] | None = getattr(self._made, "models", None)
        if made is None:
            made = self._made.models = {}
        if recipe not in made:
            parts: OrderedDict[str, nn.Module] = OrderedDict()
            before: Shape | None = None
            for position, (number, place) in enumerate(recipe):
                layer = self.layers[number][place]
                if before is not None and (between := stitch(before, layer.inputs)) is not None:
                    parts[f"stitch{position}"] = between
                modules = [copy.deepcopy(self.architectures.modules[number].get_submodule(key)) for key in layer.parts]
                parts[f"layer{position}"] = nn.Sequential(*modules)
                before = layer.outputs
            module = nn.Sequential(parts).to("meta").eval()  # parameters are given with each call
            made[recipe] = Model(module, Layout.of(module))
        return made[recipe]

    def own_names(self, recipe: Recipe) -> Iterable[tuple[int, str, str]]:
        """For each parameter of a model's layers: the position of the layer, its name in the model, and in the one it comes from."""
        for position, (number, place) in enumerate(recipe):
            for index, key in enumerate(self.layers[number][place].parts):
                for name, _ in self.architectures.modules[number].get_submodule(key).named_parameters():
                    yield position, f"layer{position}.{index}.{name}", f"{key}.{name}"

    def assemble(self, recipe: Recipe, sources: Sequence[Tensor], generator: np.random.Generator) -> Tensor:
        """The parameters [P] of a model, whose layers come from models `sources` [P] of their architectures, one for each layer. Stitches
        are drawn, uniformly as PyTorch does."""
        model = self.model(recipe)
        found = sources[0].new_zeros(model.layout.size)
        views = model.layout.views(found)
        taken = [self.architectures.layouts[number].views(source) for (number, _), source in zip(recipe, sources, strict=True)]
        for position, name, own in self.own_names(recipe):
            views[name].copy_(taken[position][own])
        for name, view in views.items():
            if name.startswith("stitch"):
                weight = views[name.rpartition(".")[0] + ".weight"]
                bound = weight[0].numel() ** -0.5
                view.copy_(torch.from_numpy(generator.uniform(-bound, bound, tuple(view.shape))))
        return found

    def encoded(self, recipe: Recipe) -> list[int]:
        """A recipe as numbers, of length 2 `most`; -1 where it has ended."""
        numbers = [number for pair in recipe for number in pair]
        return numbers + [-1] * (2 * self.most - len(numbers))

    @staticmethod
    def decoded(numbers: Sequence[float]) -> Recipe:
        """The recipe that :meth:`encoded` wrote; empty if there is none."""
        pairs = zip(numbers[::2], numbers[1::2], strict=True)
        return tuple((int(number), int(place)) for number, place in pairs if number >= 0)

    def passes(self, recipe: Recipe) -> Passes:
        """The cost of a model."""
        module, example = self.model(recipe).module, self.architectures.example[:1].to("meta")
        totals = []
        for backward in (False, True):
            with torch.enable_grad(), counter() as counted:
                output = module(example).sum()
                if backward:
                    output.backward()
            totals.append(int(counted.get_total_flops()))
        module.zero_grad()
        return Passes(*totals)

    def whole(self, number: int) -> Recipe:
        """The recipe of an architecture itself."""
        return tuple((number, place) for place in range(len(self.layers[number])))

    def representations(self, number: int, vector: Tensor, inputs: Tensor) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
        """Inputs and outputs of each layer of a model [P] of an architecture, [n, ...] each, and its logits."""
        module, views = self.architectures.modules[number], self.architectures.layouts[number].views(vector)
        found, values = [], inputs.to(vector.dtype)
        for layer in self.layers[number]:
            before = values
            for key in layer.parts:
                part = copy.copy(module.get_submodule(key)).eval()
                own = {name: views[f"{key}.{name}"] for name, _ in part.named_parameters()}
                values = functional_call(part, own, (values,))
            found.append((before, values))
        return found, values


def _count(module: nn.Module | None) -> int:
    return 0 if module is None else sum(parameter.numel() for parameter in module.parameters())


@dataclass(frozen=True)
class Piece:
    """A layer of one of the models at hand. owner: the position of that model. number, place: of its architecture, and in it."""

    owner: int
    number: int
    place: int
    layer: Layer


def candidates(pieces: Sequence[Piece], clusters: Indices, count: int, generator: np.random.Generator) -> list[tuple[Piece, ...]]:
    """At most `count` different ways to put pieces together, int64 [pieces] of which have these `clusters`.

    Each has as many layers as some of the models, or more where the other rules ask for them: it begins with a first layer and ends with
    a last one, has convolutions before linear layers and both kinds if any model has, each in the order that they had, and a layer of
    each cluster that can have a place in it.
    """
    found: dict[tuple[tuple[int, int], ...], tuple[Piece, ...]] = {}
    for _ in range(TRIES * count):
        candidate = _candidate(pieces, clusters, generator)
        found.setdefault(tuple((piece.owner, piece.place) for piece in candidate), candidate)
        if len(found) == count:
            break
    return list(found.values())


TRIES = 10
"""To find one more candidate that differs from the others."""


def _candidate(pieces: Sequence[Piece], clusters: Indices, generator: np.random.Generator) -> tuple[Piece, ...]:
    convolutional = any(piece.layer.kind == CONVOLUTION for piece in pieces)
    depths = {piece.owner: 0 for piece in pieces}
    for piece in pieces:
        depths[piece.owner] += 1
    length = int(generator.integers(min(depths.values()), max(depths.values()) + 1))
    chosen: dict[tuple[int, int], int] = {}

    def add(allowed: Iterable[int]) -> bool:
        places = [position for position in allowed if pieces[position].layer.order not in chosen]
        if places:
            position = places[int(generator.integers(len(places)))]
            chosen[pieces[position].layer.order] = position
        return bool(places)

    everything = range(len(pieces))
    begins = [p for p in everything if pieces[p].layer.first and (pieces[p].layer.kind == CONVOLUTION or not convolutional)]
    add(begins or [p for p in everything if pieces[p].layer.first])
    add(p for p in everything if pieces[p].layer.last)
    inner = [p for p in everything if not pieces[p].layer.first and not pieces[p].layer.last]
    for cluster in np.unique(clusters).tolist():
        if all(clusters[p] != cluster for p in chosen.values()):
            add(p for p in inner if clusters[p] == cluster)
    for kind in {piece.layer.kind for piece in pieces} - {pieces[p].layer.kind for p in chosen.values()}:
        add(p for p in inner if pieces[p].layer.kind == kind)
    while len(chosen) < length and add(inner):
        pass
    return tuple(pieces[chosen[order]] for order in sorted(chosen))


def fine_tuned(model: Model, vector: Tensor, inputs: Tensor, targets: Tensor, orders: Sequence[Indices], batch: int, lr: float) -> Tensor:
    """Parameters [P] after passes over samples in these orders, int64 [n] each, by Adam on the cross-entropy; in new memory."""
    trained = vector.clone().requires_grad_()
    optimizer = torch.optim.Adam([trained], lr)
    for order in orders:
        for which in torch.split(torch.from_numpy(order).to(inputs.device), batch):
            loss = F.cross_entropy(model.logits(trained, inputs[which]), targets[which])
            (trained.grad,) = torch.autograd.grad(loss, [trained])
            optimizer.step()
    return trained.detach()


def taught(rows: Rows, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """The logits of each row's teacher, which its client keeps as `recipe` and `teacher`, for its inputs, [rows, B, classes], and whether
    it has one, [rows]. Reads back."""
    assert rows.architectures is not None
    library = Library.of(rows.architectures)
    teachers, classes = rows.state["teacher"], library.classes
    recipes = [library.decoded(numbers) for numbers in rows.state["recipe"].tolist()]
    with torch.no_grad():
        logits = [
            library.model(recipe).logits(teacher, own) if recipe else teacher.new_zeros(len(own), classes)
            for recipe, teacher, own in zip(recipes, teachers, inputs, strict=True)
        ]
    return torch.stack(logits), teachers.new_tensor([float(bool(recipe)) for recipe in recipes])


def distilled(outputs: Outputs, targets: Tensor, /, **inputs: Tensor) -> Tensor:
    """Cross-entropies plus `alpha` times the divergence KL(p' | p) of predictions p from those of the `teacher`'s logits."""
    from fl_hydra.seams.losses import cross_entropies

    log = F.log_softmax(outputs.logits, -1)
    theirs = F.log_softmax(inputs["teacher"], -1)
    divergence = (theirs.exp() * (theirs - log)).sum(-1)
    return cross_entropies(outputs.logits, targets) + inputs["alpha"] * divergence
