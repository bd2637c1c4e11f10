"""Models taken apart and put together."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fl_hydra.errors import UserError
from fl_hydra.randomness import generator
from fl_hydra.seams.architectures import Architectures
from fl_hydra.seams.layout import Layout
from fl_hydra.seams.reassembly import CONVOLUTION, LINEAR, Library, Piece, Pool, candidates, fine_tuned, layers_of, stitch

INPUTS = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def small(filters: int = 3) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, filters, 5, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(36 * filters, 8), nn.ReLU(), nn.Linear(8, 10)
    )


def deep() -> nn.Module:
    convolutions = [nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*convolutions, nn.Linear(150, 12), nn.ReLU(), nn.Dropout(0.5), nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 10))


def architectures(*modules: nn.Module) -> Architectures:
    modules = tuple(module.double() for module in modules)
    return Architectures(modules, tuple(map(Layout.of, modules)), INPUTS)


def vector_of(module: nn.Module) -> Tensor:
    return Layout.of(module).flat(parameter.detach() for parameter in module.parameters())


def pieces_of(library: Library, numbers: list[int]) -> list[Piece]:
    return [Piece(owner, n, place, layer) for owner, n in enumerate(numbers) for place, layer in enumerate(library.layers[n])]


def test_layers_follow_each_other_with_what_is_between_them() -> None:
    layers = layers_of(deep().double(), INPUTS)
    assert [layer.kind for layer in layers] == [CONVOLUTION] * 2 + [LINEAR] * 3
    assert [layer.parts for layer in layers] == [("0", "1", "2", "3"), ("4", "5"), ("6", "7", "8", "9"), ("10", "11"), ("12",)]
    assert [layer.inputs for layer in layers] == [(1, 16, 16), (4, 7, 7), (6, 5, 5), (12,), (9,)]
    assert all(one.outputs == other.inputs for one, other in pairwise(layers)) and layers[-1].outputs == (10,)
    assert [layer.first for layer in layers] == [True, *[False] * 4] and [layer.last for layer in layers] == [*[False] * 4, True]


def test_a_model_of_its_own_layers_is_the_model() -> None:
    for module in (small(), deep()):
        library = Library(architectures(module))
        vector = vector_of(module)
        made = library.model(library.whole(0))
        assert made.layout.size == len(vector) == library.width, "there are no stitches"
        assembled = library.assemble(library.whole(0), [vector] * len(library.layers[0]), np.random.default_rng(0))
        torch.testing.assert_close(made.logits(assembled, INPUTS), module.eval()(INPUTS), rtol=0, atol=1e-14)
        found, logits = library.representations(0, vector, INPUTS)
        torch.testing.assert_close(logits, module(INPUTS), rtol=0, atol=1e-14)
        assert [tuple(values.shape[1:]) for _, values in found] == [layer.outputs for layer in library.layers[0]]


@pytest.mark.parametrize("numbers", [[0], [0, 0, 0], [1, 1]])
def test_of_one_architecture_candidates_are_of_that_architecture(numbers: list[int]) -> None:
    """With one model, that model."""
    library = Library(architectures(small(), deep()))
    pieces = pieces_of(library, numbers)
    for seed in range(5):
        rng = np.random.default_rng(seed)
        clusters = rng.integers(0, 2, len(pieces))
        found = candidates(pieces, clusters, 4, rng)
        assert len(found) == (1 if len(numbers) == 1 else 4)
        for candidate in found:
            assert tuple((piece.number, piece.place) for piece in candidate) == library.whole(numbers[0])


def test_candidates_keep_the_rules() -> None:
    library = Library(architectures(small(), deep(), small(5)))
    pieces = pieces_of(library, [0, 1, 2, 1])
    for seed in range(20):
        rng = np.random.default_rng(seed)
        clusters = rng.integers(0, 2, len(pieces))
        found = candidates(pieces, clusters, 4, rng)
        assert len({tuple((piece.owner, piece.place) for piece in candidate) for candidate in found}) == 4
        for candidate in found:
            layers = [piece.layer for piece in candidate]
            assert layers[0].first and layers[-1].last and sum(layer.first for layer in layers) == sum(layer.last for layer in layers) == 1
            kinds = [layer.kind for layer in layers]
            assert kinds == sorted(kinds) and set(kinds) == {CONVOLUTION, LINEAR}
            for kind in (CONVOLUTION, LINEAR):
                places = [layer.place for layer in layers if layer.kind == kind and not layer.first and not layer.last]
                assert places == sorted(set(places))
            assert 2 <= len(layers) <= library.most
            recipe = tuple((piece.number, piece.place) for piece in candidate)
            made = library.model(recipe)
            assert made.layout.size <= library.width
            vector = library.assemble(recipe, [vector_of(library.architectures.modules[p.number]) for p in candidate], rng)
            assert made.logits(vector, INPUTS).shape == (2, 10)
            assert library.decoded([float(number) for number in library.encoded(recipe)]) == recipe


def test_stitches_lead_from_one_shape_to_another() -> None:
    assert stitch((4, 5, 5), (4, 5, 5)) is None and stitch((7,), (7,)) is None
    for before, after, parameters in [
        ((4, 7, 7), (4, 5, 5), 0),
        ((4, 5, 5), (6, 5, 5), 4 * 6 + 6),
        ((4, 7, 7), (6, 5, 5), 4 * 6 + 6),
        ((4, 3, 3), (5,), 36 * 5 + 5),
        ((4, 9, 9), (5,), 64 * 5 + 5),
        ((7,), (2, 3, 3), 7 * 18 + 18),
        ((7,), (5,), 40),
    ]:
        module = stitch(before, after)
        assert module is not None
        assert module(torch.zeros(3, *before, device="meta")).shape == (3, *after)
        assert sum(parameter.numel() for parameter in module.parameters()) == parameters


@pytest.mark.parametrize("sides", [(7, 5), (5, 7), (3, 3)])
def test_pooling_is_adaptive(sides: tuple[int, int]) -> None:
    images = torch.randn(2, 3, 7, 6, dtype=torch.float64)
    torch.testing.assert_close(Pool(*sides)(images), nn.AdaptiveAvgPool2d(sides)(images), rtol=0, atol=1e-14)


def test_fine_tuning_is_adam_on_the_cross_entropy() -> None:
    module = small()
    library = Library(architectures(module))
    inputs, targets = torch.randn(12, 1, 16, 16, dtype=torch.float64), torch.arange(12) % 10
    orders = [generator(0, "order", epoch).permutation(12) for epoch in range(2)]
    vector, made = vector_of(module), library.model(library.whole(0))
    found = fine_tuned(made, vector, inputs, targets, orders, 5, 0.01)
    assert torch.equal(vector, vector_of(module)), "in new memory"
    optimizer = torch.optim.Adam(module.parameters(), 0.01)
    for order in orders:
        for first in (0, 5, 10):
            which = torch.from_numpy(order[first : first + 5])
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(inputs[which]), targets[which]).backward()
            optimizer.step()
    torch.testing.assert_close(found, vector_of(module), rtol=0, atol=1e-12)
    assert torch.equal(fine_tuned(made, vector, inputs, targets, [], 5, 0.01), vector)


def test_the_cost_of_a_model_is_that_of_its_products() -> None:
    library = Library(architectures(nn.Sequential(nn.Flatten(), nn.Linear(256, 8), nn.ReLU(), nn.Linear(8, 10))))
    passes = library.passes(library.whole(0))
    assert passes.forward == 2 * (256 * 8 + 8 * 10)
    assert passes.both == passes.forward * 2 + 2 * 8 * 10, "nobody asks for the gradient of the inputs"


def test_so_is_that_of_grouped_convolutions() -> None:
    library = Library(architectures(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, groups=4), nn.Flatten(), nn.Linear(4 * 144, 10))))
    first, second, last = 2 * 9 * 4 * 14 * 14, 2 * 9 * 4 * 12 * 12, 2 * 4 * 144 * 10
    passes = library.passes(library.whole(0))
    assert (passes.forward, passes.both) == (first + second + last, 2 * first + 3 * (second + last))


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(256, 10)

    def forward(self, inputs: Any) -> Any:
        return self.layer(inputs.flatten(1)) * 2


@pytest.mark.parametrize("module", [Twice(), nn.Sequential(nn.Flatten(), nn.Linear(256, 10)), nn.Sequential(nn.Flatten(), Twice())])
def test_what_cannot_be_taken_apart_is_refused(module: nn.Module) -> None:
    with pytest.raises(UserError, match=r"algorithm=pfedhr.*choose"):
        layers_of(module.double(), INPUTS)
