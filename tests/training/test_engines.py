"""Engines against each other."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from fl_hydra.algorithms.base import algorithms
from fl_hydra.algorithms.fedavg import FedAvg
from fl_hydra.arrays import Indices
from fl_hydra.data.dataset import DatasetInfo
from fl_hydra.errors import UserError
from fl_hydra.models.base import Model
from fl_hydra.models.small import Small
from fl_hydra.seams.rows import Batch, Gradient, Rows
from fl_hydra.sweeping.grid import check_models
from fl_hydra.training.engine_selection import fastest
from fl_hydra.training.stacked_engine import convolution_as_product
from fl_hydra.training.trainer import Trainer
from tests.support.engines import KINDS, PAIRS, arguments
from tests.support.make import experiment, trainer


@pytest.mark.parametrize(
    ("algorithm", "optimizer", "engine", "precision"),
    [
        *((*pair, "stacked", "fp64") for pair in PAIRS),
        *((*pair, "im2col", "fp64") for pair in KINDS),
        *((*pair, engine, "fp32") for pair in KINDS for engine in ("stacked", "im2col")),
    ],
)
def test_engines_agree(algorithm: str, optimizer: str, engine: str, precision: str) -> None:
    """Every method in float64; in single precision, and with other kernels, every way to ask for gradients."""
    tolerance = 1e-12 if precision == "fp64" else 2e-5
    loop, stacked = (trainer(*arguments(algorithm, optimizer, f"precision={precision}"), engine=name) for name in ("loop", engine))
    run = loop.sole_run
    passes: list[float] = []
    charge_gradients, charge_outputs = run.charge_gradients, run.charge_outputs

    def pass_over(ids: Indices, samples: Indices | None = None, architecture: int = 0) -> None:
        passes.append(int((run.shard_sizes[ids] if samples is None else samples).sum()))
        charge_gradients(ids, samples)

    def forward_over(client: int, architecture: int = 0) -> None:
        passes.append(int(run.shard_sizes[client]) / 3)
        charge_outputs(client, architecture)

    run.charge_gradients, run.charge_outputs = pass_over, forward_over  # type: ignore[method-assign, assignment]
    while not loop.finished:
        loop.run_round()
        stacked.run_round()
    torch.testing.assert_close(loop.state.model, stacked.state.model, rtol=tolerance, atol=tolerance)
    steps = run.computed + run.forwarded / 3 + 2 * run.products - sum(passes)
    declared = pytest.approx(run.experiment.algorithm.gradients_per_batch * run.samples)
    assert steps == declared, "simulated time is that of what is declared"
    one, other = loop.evaluate()[0], stacked.evaluate()[0]
    assert one.keys() == other.keys()
    for name, value in one.items():
        if value is None:
            assert other[name] is None
            continue
        assert other[name] == pytest.approx(
            value, rel=100 * tolerance, abs=0.011 if "acc" in name and precision != "fp64" else tolerance
        ), name


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("engine", ["stacked", "im2col"])
def test_low_precisions_agree_roughly_and_keep_fp32_masters(precision: str, engine: str) -> None:
    exact, loop, stacked = (
        trainer(*arguments("fedavg", "sgd", f"precision={name}"), engine=engine)
        for name, engine in (("fp32", "loop"), (precision, "loop"), (precision, engine))
    )
    start = loop.state.model.clone()
    while not loop.finished:
        for run in (exact, loop, stacked):
            run.run_round()
    assert loop.state.model.dtype == torch.float32
    moved = (loop.state.model - start).norm()
    assert (loop.state.model - stacked.state.model).norm() < 0.05 * moved
    assert 0 < (loop.state.model - exact.state.model).norm() < 0.05 * moved


def test_a_loss_scale_keeps_gradients_that_fp16_would_lose() -> None:
    """Of gradients near the smallest number of fp16 (6e-8), the scaled ones survive."""
    run = trainer(*arguments("fedavg", "sgd", "precision=fp16"))
    assert run.precision.loss_scale >= 512
    tiny = torch.tensor(2e-8)
    assert tiny.half() == 0
    assert (tiny * run.precision.loss_scale).half() > 0


def test_convolution_as_a_product_is_the_convolution() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(3, 4, 9, 8, dtype=torch.float64, generator=generator)
    for stride, padding, dilation in ((1, 0, 1), (2, 1, 1), ((1, 2), (2, 0), 2)):
        weight, bias = torch.randn(5, 4, 3, 2, dtype=torch.float64, generator=generator), torch.randn(5, dtype=torch.float64)
        expected = nn.functional.conv2d(inputs, weight, bias, stride, padding, dilation)
        torch.testing.assert_close(convolution_as_product(inputs, weight, bias, stride, padding, dilation), expected, rtol=0, atol=1e-12)


def test_many_models_are_evaluated_as_each_alone() -> None:
    runs = [trainer("rounds=1", "precision=fp64", engine=engine) for engine in ("loop", "stacked")]
    models = torch.randn(3, runs[0].group.layout.size, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) / 10
    together = [run.group.engine.evaluate(models, run.split.test) for run in runs]
    torch.testing.assert_close(together[0], together[1], rtol=1e-12, atol=1e-9)
    alone = runs[0].group.engine.evaluate(models[1:2], runs[0].split.test)
    torch.testing.assert_close(together[1][1:2], alone, rtol=1e-12, atol=1e-9)


class Weighed(torch.autograd.Function):
    """Passes inputs on, and notes of each stacked call whether its weights are those of one model."""

    shared: ClassVar[list[bool]] = []

    @staticmethod
    def forward(inputs: Tensor, weight: Tensor) -> Tensor:
        return inputs.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None: ...

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, inputs: Tensor, weight: Tensor) -> tuple[Tensor, int]:
        Weighed.shared.append(in_dims[1] is None)
        return inputs.clone(), in_dims[0]


class Observing(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.network(Weighed.apply(inputs, next(self.network.parameters())))
        return logits


@dataclass
class Observed(Small):
    def build(self, info: DatasetInfo) -> nn.Module:
        return Observing(super().build(info))


def test_the_first_step_is_shared_only_while_rows_are_equal() -> None:
    """A step that moves the rows before it asks for the gradient gets the gradient where they are, in every engine."""

    @dataclass
    class Sharp(FedAvg):
        def step(self, rows: Rows, gradient: Gradient, batches: Sequence[Batch], j: int) -> None:
            first = gradient(rows.parameters, batches[0]).clone()
            rows.parameters.add_(first, alpha=0.1)
            there = gradient(rows.parameters, batches[0], metered=False).clone()
            rows.parameters.sub_(first, alpha=0.1)
            rows.descend(there, j)

    runs = [
        trainer(*arguments("fedavg", "sgd", "precision=fp64"), engine=engine, algorithm=Sharp(), model=Observed())
        for engine in ("loop", "stacked")
    ]
    Weighed.shared.clear()
    for run in runs:
        run.run_round()
    assert Weighed.shared == [True] + [False] * 5, "of two gradients in each of three steps, the first is taken at equal rows"
    torch.testing.assert_close(runs[0].state.model, runs[1].state.model, rtol=1e-12, atol=1e-12)


class Odd(nn.Module):
    """A linear model, and what a test adds to it."""

    def __init__(self, add: Callable[[nn.Module], None]) -> None:
        super().__init__()
        self.linear = nn.Linear(256, 10)
        self.between: Callable[[Tensor], Tensor] = lambda value: value
        add(self)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.between(inputs.flatten(1)))
        return logits


class Counting(nn.Module):
    """Keeps a running mean of its own."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, inputs: Tensor) -> Tensor:
        self.seen += 1
        return inputs


class Permuting(nn.Module):
    """Changes the order of features, in a way that is drawn when it is made."""

    order: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("order", torch.randperm(256))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs[:, self.order]


def _freeze(module: nn.Module) -> None:
    module.requires_grad_(False)


def _twice(layer: nn.Module) -> nn.Module:
    return nn.Sequential(layer, layer)


def _between(function: Callable[[Tensor], Tensor]) -> Callable[[nn.Module], None]:
    return lambda module: setattr(module, "between", function)


ODD: dict[str, tuple[Callable[[nn.Module], None], str]] = {
    "a dropout that evaluation does not end": (_between(nn.functional.dropout), "a dropout is on in evaluation"),
    "a dropout across samples": (_between(lambda value: nn.Dropout(0.5)(value.T).T), r"a dropout gets \(256, 2\) for 2 samples"),
    "another number of features": (_between(lambda value: value[:, :5]), "its forward pass ends with RuntimeError"),
    "a random rectifier": (_between(nn.RReLU()), "draws random numbers"),
    "noise": (_between(lambda value: value + torch.randn_like(value)), "draws random numbers"),
    "statistics of batches in evaluation": (_between(nn.BatchNorm1d(256, track_running_stats=False)), "has track_running_stats=False"),
    "a mean over all batches": (_between(nn.BatchNorm1d(256, momentum=None)), "momentum=None"),
    "one normalisation in two places": (_between(_twice(nn.BatchNorm1d(256))), "belongs to two places"),
    "other running statistics": (_between(Counting()), "its forward pass changes between.seen"),
    "integers that no seed decides about": (
        lambda module: setattr(module, "between", Permuting()),
        "between.order are drawn when it is made",
    ),
    "nothing to train": (_freeze, "there is nothing to train"),
    "an unused parameter": (
        lambda module: setattr(module, "spare", nn.Linear(2, 2)),
        "spare.weight, spare.bias have no part in its output",
    ),
}


@pytest.mark.parametrize("engine", ["loop", "stacked"])
@pytest.mark.parametrize("what", list(ODD))
def test_models_that_engines_would_train_differently_are_refused_by_all(what: str, engine: str) -> None:
    @dataclass
    class OddModel(Model):
        name: str = "odd"

        def build(self, info: DatasetInfo) -> nn.Module:
            return Odd(ODD[what][0])

    with pytest.raises(UserError, match=ODD[what][1]):
        trainer("algorithm=fedavg", engine=engine, model=OddModel())
    with pytest.raises(UserError, match=ODD[what][1]):  # before the first point of a sweep
        check_models([experiment("algorithm=fedavg"), experiment("algorithm=fedavg", model=OddModel())])


@pytest.mark.parametrize("algorithm", ["fedavg", "gossip"])
def test_a_gradient_away_from_a_rows_place_copies_no_module(algorithm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the first round, in which a place for such gradients is made; and it is the gradient there."""

    class Away(type(algorithms[algorithm]())):  # type: ignore[misc]
        def step(self, rows: Rows, gradient: Gradient, batches: Sequence[Batch], j: int) -> None:
            ahead = rows.parameters + 0.5 * gradient(rows.parameters, batches[0])
            rows.descend(gradient(ahead, batches[0], metered=False), j)

    run, other = (trainer(*arguments(algorithm, "sgd", "precision=fp64"), engine=name, algorithm=Away()) for name in ("loop", "stacked"))
    run.run_round()
    copies: list[object] = []
    monkeypatch.setattr("fl_hydra.training.loop_engine.copy.deepcopy", copies.append)
    run.run_round()
    assert not copies
    for _ in range(2):
        other.run_round()
    torch.testing.assert_close(run.state.model, other.state.model, rtol=1e-12, atol=1e-12)


def test_auto_takes_the_fastest_that_works_and_measures_once() -> None:
    asked: list[str] = []
    lines: list[str] = []

    def rounds(name: str) -> Any:
        asked.append(name)
        if name == "broken":
            raise RuntimeError("no kernel\nfor this card")
        return lambda: time.sleep({"slow": 0.03, "quick": 0.0}[name])

    for _ in range(2):
        assert fastest(["slow", "broken", "quick"], rounds, "a test", lines.append) == "quick"
    assert asked == ["slow", "broken", "quick"]
    assert lines == ["engine=broken cannot be used here: no kernel for this card"]
    with pytest.raises(RuntimeError, match="none of the engines broken can be used"):
        fastest(["broken"], rounds, "another", lines.append)


def test_a_precision_without_instructions_for_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    notes: list[str] = []
    for precision in ("fp32", "bf16"):
        Trainer(experiment("algorithm=localsgd", f"precision={precision}"), engine="loop", notify=notes.append)
    (note,) = notes
    assert note.startswith("precision=bf16: this CPU has no instructions for it")
