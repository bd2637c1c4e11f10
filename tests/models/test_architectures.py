"""Architectures for images: in every engine and precision, with the counts of their papers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fl_hydra.data.dataset import DatasetInfo
from fl_hydra.models.base import Model
from fl_hydra.models.convmixer import ConvMixer
from fl_hydra.models.convnext import ConvNeXt
from fl_hydra.models.lenet import LeNet
from fl_hydra.models.resnet import ResNet
from fl_hydra.models.vit import ViT
from fl_hydra.seams.layout import Layout
from fl_hydra.training.sample_cost import sample_flops
from fl_hydra.training.trainer import Trainer
from tests.support.capture import under_guard
from tests.support.layers import batch_of
from tests.support.models import TINY_MODELS
from tests.support.small import composed

ENGINES = ("loop", "stacked", "im2col")
WORDS = ("algorithm=fedavg", "K=5", "C=0.6", "J=2", "samples=31", "optimizer=sgd", "optimizer.lr=0.05")
"""A round, and a cut one in which rows have different numbers of samples."""


def made(name: str, engine: str, precision: str = "fp64") -> Trainer:
    return Trainer(replace(composed(*WORDS), model=TINY_MODELS[name], precision=precision), engine=engine)


def trained(name: str, engine: str, precision: str = "fp64") -> Trainer:
    run = made(name, engine, precision)
    while not run.finished:
        run.run_round()
    return run


@pytest.mark.parametrize("name", TINY_MODELS)
def test_engines_agree(name: str) -> None:
    """On models, statistics, metrics, products with the Hessian, and features, which make the logits."""
    runs = [trained(name, engine) for engine in ENGINES]
    lines = [run.evaluate()[0] for run in runs]
    which = torch.arange(6).view(2, 3)
    vectors = torch.randn(2, runs[0].group.layout.size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = []
    for run in runs:
        models, batch = run.state.model.repeat(2, 1), batch_of(run, which)
        outputs = run.group.engine.outputs(models, batch)
        head = run.group.layout.head
        weight, bias = (run.group.layout.views(run.state.model[0])[f"{head}.{part}"] for part in ("weight", "bias"))
        torch.testing.assert_close(outputs.features @ weight.T + bias, outputs.logits, rtol=1e-12, atol=1e-12)
        found.append((outputs.features, run.group.engine.product(models, vectors, batch)))
    for run, line, others in zip(runs[1:], lines[1:], found[1:], strict=True):
        for key, tensor in run.state.tensors().items():
            torch.testing.assert_close(tensor, runs[0].state.tensors()[key], rtol=1e-11, atol=1e-11)
        assert line == pytest.approx(lines[0], abs=1e-10)
        torch.testing.assert_close(others, found[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", TINY_MODELS)
def test_low_precision_is_near_and_nothing_is_read_back(name: str) -> None:
    """bf16 rounds to 0.4 %, which changes the maximum that a pooling takes."""
    exact = made(name, "loop", "fp32")
    start = exact.state.model.clone()
    exact.run_round()
    moved = exact.state.model - start
    for engine, precision, allowed in (("stacked", "fp32", 1e-4), *((engine, "bf16", 0.3) for engine in ENGINES)):
        run = made(name, engine, precision)
        under_guard(run)
        assert (run.state.model - exact.state.model).norm() < allowed * moved.norm(), (engine, precision)


def info(side: int, channels: int, classes: int) -> DatasetInfo:
    return DatasetInfo("", (channels, side, side), classes, (1,) * classes, (1,) * classes)


SIZES: list[tuple[Model, int, int]] = [
    (LeNet(), 100, 815_332),
    (LeNet(norm="group"), 100, 815_332 + 2 * 2 * 64 - 2 * 64),
    (ResNet(), 10, 269_722),
    (ResNet(norm="group"), 100, 275_572),
    (ResNet(blocks=9), 10, 853_018),
    (ViT(), 100, 822_500),
    (ConvNeXt(), 100, 651_020),
    (ConvMixer(), 100, 617_316),
]
"""Models, with a number of classes and of parameters on images of 32x32 pixels. He et al. have 0.27 M and 0.85 M."""


@pytest.mark.parametrize(("model", "classes", "parameters"), SIZES)
def test_parameters_are_those_of_the_papers(model: Model, classes: int, parameters: int) -> None:
    for of in (info(32, 3, classes), info(16, 1, 10)):
        model.check(of)
        module = model.build(of)
        assert module(torch.zeros(2, *of.shape)).shape == (2, of.classes)
        layout = Layout.of(module)
        assert layout.head is not None and module.get_submodule(layout.head).out_features == of.classes
        if of.classes == classes and of.shape[1] == 32:
            assert layout.size == parameters


def multiply_adds(module: nn.Module, of: DatasetInfo) -> int:
    """Of one sample's forward pass in convolutions and linear layers, from the shapes of what they take and make."""
    total = 0

    def count(part: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        if isinstance(part, nn.Conv2d | nn.Linear):
            each = part.weight[0].numel()  # for a convolution, of the inputs in its group
            total += each * output.numel()

    for part in module.modules():
        part.register_forward_hook(count)
    module(torch.zeros(1, *of.shape))
    return total


@pytest.mark.parametrize("name", TINY_MODELS)
def test_operations_are_counted(name: str) -> None:
    """Two for each multiply-add; a backward pass has twice those of a forward pass, without those of the images' gradient."""
    of = info(16, 3, 10)
    module = TINY_MODELS[name].build(of).eval()
    attention = 2 * 4 * 4 * 8 if name == "vit" else 0  # scores and sums of 4 tokens of width 8
    expected = multiply_adds(module, of) + attention
    first = next(part for part in module.modules() if isinstance(part, nn.Conv2d))
    sizes: list[int] = []
    first.register_forward_hook(lambda part, inputs, output: sizes.append(part.weight[0].numel() * output.numel()))
    module(torch.zeros(1, *of.shape))
    assert sample_flops(module, of, backward=False) == 2 * expected
    assert sample_flops(module, of) == 2 * (3 * expected - sizes[0])


def test_pytorch_counts_grouped_convolutions_too_often() -> None:
    """Where it no longer does, what is put right in `sample_cost` is."""
    module = nn.Conv2d(6, 12, 3, groups=3)
    with FlopCounterMode(display=False) as counter:
        module(torch.zeros(1, 6, 3, 3)).sum().backward()
    assert counter.get_total_flops() == 2 * 12 * 2 * 9 * (1 + 3)
