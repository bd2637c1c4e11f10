"""Engines against each other, and the promise that a local step can be captured."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fl_hydra.algorithms.base import algorithms
from fl_hydra.algorithms.events import EventDriven
from fl_hydra.algorithms.fedavg import FedAvg
from fl_hydra.data.dataset import DatasetInfo
from fl_hydra.errors import UserError
from fl_hydra.models.base import Model
from fl_hydra.seams.rows import Batch, Gradient, Rows
from fl_hydra.sweeping.grid import _check_models
from fl_hydra.training.engine_selection import fastest
from fl_hydra.training.engines import CPU_GRADIENT_BATCH, Objective, StackedEngine, _convolution_as_product
from fl_hydra.training.graphs import GraphLauncher
from fl_hydra.training.trainer import Trainer
from tests.support.make import experiment, kind, trainer

SETTINGS = {
    "centralized": ("rounds=2",),
    "localsgd": ("K=4", "J=4", "samples=700"),  # the last round is cut, with rows that stop at different steps
    "fedavg": ("K=10", "C=0.3", "J=3", "samples=700"),
}
PAIRS = [
    *((algorithm, "sgdm") for algorithm in algorithms),
    *(("localsgd", optimizer) for optimizer in ("sgd", "adamw", "lars", "lamb")),
    ("fedavg", "sgd"),
]
"""Every algorithm with one optimizer, and every kind of optimizer with one algorithm."""


def arguments(algorithm: str, optimizer: str, *more: str) -> list[str]:
    return [f"algorithm={algorithm}", *SETTINGS[kind(algorithm)], f"optimizer={optimizer}", "batch_size=16", *more]


@pytest.mark.parametrize(("algorithm", "optimizer"), PAIRS)
@pytest.mark.parametrize("engine", ["stacked", "im2col"])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp64", 1e-12), ("fp32", 2e-5), ("tf32", 2e-5)])
def test_engines_agree(algorithm: str, optimizer: str, engine: str, precision: str, tolerance: float) -> None:
    loop, stacked = (trainer(*arguments(algorithm, optimizer, f"precision={precision}"), engine=name) for name in ("loop", engine))
    while not loop.finished:
        loop.run_round()
        stacked.run_round()
    torch.testing.assert_close(loop.state.model, stacked.state.model, rtol=tolerance, atol=tolerance)
    one, other = loop.evaluate()[0], stacked.evaluate()[0]
    assert one.keys() == other.keys()
    for name, value in one.items():
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
        torch.testing.assert_close(_convolution_as_product(inputs, weight, bias, stride, padding, dilation), expected, rtol=0, atol=1e-12)


def test_many_models_are_evaluated_as_each_alone() -> None:
    runs = [trainer("rounds=1", "precision=fp64", engine=engine) for engine in ("loop", "stacked")]
    models = torch.randn(3, runs[0].group.layout.size, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) / 10
    together = [run.group.engine.evaluate(models, run.split.test) for run in runs]
    torch.testing.assert_close(together[0], together[1], rtol=1e-12, atol=1e-9)
    alone = runs[0].group.engine.evaluate(models[1:2], runs[0].split.test)
    torch.testing.assert_close(together[1][1:2], alone, rtol=1e-12, atol=1e-9)


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

    runs = [trainer(*arguments("fedavg", "sgd", "precision=fp64"), engine=engine, algorithm=Sharp()) for engine in ("loop", "stacked")]
    asked = {True: 0, False: 0}
    engine = runs[1].group.engine
    assert isinstance(engine, StackedEngine)
    shared = engine._shared

    def counted(parameters: Tensor) -> Tensor | None:
        model = shared(parameters)
        asked[model is not None] += 1
        return model

    engine._shared = counted  # type: ignore[method-assign]
    for run in runs:
        run.run_round()
    assert asked == {True: 1, False: 5}, "of two gradients in each of three steps, the first is taken at equal rows"
    torch.testing.assert_close(runs[0].state.model, runs[1].state.model, rtol=1e-12, atol=1e-12)


REFUSED = {
    "aten::_local_scalar_dense": "reads a value back to the host",
    "aten::item": "reads a value back to the host",
    "aten::is_nonzero": "reads a value back to the host",
    "aten::nonzero": "has a data-dependent shape",
    "aten::masked_select": "has a data-dependent shape",
    "aten::unique_dim": "has a data-dependent shape",
    "aten::_unique2": "has a data-dependent shape",
    "aten::bincount": "has a data-dependent shape",
}


class Capturable(TorchDispatchMode):
    """Refuses what cannot stand in a CUDA graph: read-backs, data-dependent shapes, boolean-mask indexing, copies between devices."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = function._schema.name
        if name in REFUSED:
            raise AssertionError(f"{name} {REFUSED[name]}")
        if name in ("aten::index", "aten::index_put", "aten::index_put_"):
            assert all(index is None or index.dtype != torch.bool for index in args[1]), f"{name} indexes by a boolean mask"
        if name in ("aten::_to_copy", "aten::copy_", "aten::to"):
            device = kwargs.get("device")
            assert device is None or torch.device(device) == args[0].device, f"{name} copies between devices"
        return function(*args, **kwargs)


def under_guard(run: Trainer) -> None:
    """A whole round under the guard: cohort, gathering and augmenting, local steps, averaging."""
    with Capturable():
        run.run_round()


@pytest.mark.parametrize(("algorithm", "optimizer"), PAIRS)
@pytest.mark.parametrize("engine", ["loop", "stacked", "im2col"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_round_reads_nothing_back(algorithm: str, engine: str, optimizer: str, precision: str) -> None:
    under_guard(trainer(*arguments(algorithm, optimizer, f"precision={precision}", "dataset.flip=true"), engine=engine))


def test_the_guard_refuses() -> None:
    @dataclass
    class Peeking(FedAvg):
        def step(self, rows: Rows, gradient: Gradient, batches: Sequence[Batch], j: int) -> None:
            super().step(rows, gradient, batches, j)
            if float(rows.parameters.norm()) > 1e9:
                raise AssertionError

    @dataclass
    class Masking(FedAvg):
        def step(self, rows: Rows, gradient: Gradient, batches: Sequence[Batch], j: int) -> None:
            super().step(rows, gradient, batches, j)
            rows.parameters[rows.parameters > 1e9] = 0

    for bad, reason in ((Peeking(), "reads a value back"), (Masking(), "boolean mask|data-dependent")):
        with pytest.raises(AssertionError, match=reason):
            under_guard(trainer(*arguments("fedavg", "sgd"), algorithm=bad))


def test_chunked_rows_equal_whole_ones() -> None:
    """Blocks of two rows, as where no more fit, give the round of five together; so do the parts of a call after memory ran out."""
    settings = arguments("localsgd", "sgdm", "precision=fp64", "K=5")
    whole = trainer(*settings, engine="stacked")
    blocks = Trainer(experiment(*settings), engine="stacked", rows_at_once=2)
    assert [block.rows.stop - block.rows.start for block in blocks.group.division.blocks[0]] == [1, 2, 2]

    lines: list[str] = []
    short = Trainer(experiment(*settings), engine="stacked", notify=lines.append)
    engine = short.group.engine
    assert isinstance(engine, StackedEngine)
    for method, rows_of in (("_own_gradient", lambda args: len(args[0])), ("_shared_gradient", lambda args: len(args[2]))):
        original = getattr(engine, method)

        def limited(*args: Any, original: Any = original, rows_of: Any = rows_of) -> Any:
            if rows_of(args) > 2:
                raise torch.OutOfMemoryError("made up")
            return original(*args)

        setattr(engine, method, limited)
    for run in (whole, blocks, short):
        while not run.finished:
            run.run_round()
    assert lines == ["5 rows at once do not fit into memory; going on with 3", "3 rows at once do not fit into memory; going on with 2"]
    for run in (blocks, short):
        torch.testing.assert_close(run.state.model, whole.state.model, rtol=1e-12, atol=1e-12)
        assert run.sole_run.computed == whole.sole_run.computed
        assert run.evaluate()[0]["train/loss"] == pytest.approx(float(whole.evaluate()[0]["train/loss"] or 0)) or run is short


@pytest.mark.parametrize("engine", ["loop", "stacked", "im2col"])
@pytest.mark.parametrize("settings", [("algorithm=centralized", "epochs=2"), ("algorithm=localsgd", "K=3", "J=2", "samples=700")])
def test_accumulated_batches_equal_whole_ones(engine: str, settings: tuple[str, ...]) -> None:
    """A batch in parts, asked for or found out when memory runs out, gives the gradient of all its samples, cut or not."""
    settings = (*settings, "batch_size=100", "precision=fp64")
    whole = trainer(*settings, engine=engine)
    parts = Trainer(experiment(*settings), engine=engine, samples_at_once=7)
    lines: list[str] = []
    short = Trainer(experiment(*settings), engine=engine, notify=lines.append)
    original = short.group.engine._gradient

    def limited(parameters: Tensor, batch: Batch, objective: Objective | None) -> tuple[Tensor, Tensor]:
        if batch.targets.shape[1] > 30:
            raise torch.OutOfMemoryError("made up")
        return original(parameters, batch, objective)

    short.group.engine._gradient = limited  # type: ignore[method-assign]
    assert (whole.group.samples_at_once, parts.group.samples_at_once) == (100, 7)
    for run in (whole, parts, short):
        while not run.finished:
            run.run_round()
    assert short.group.samples_at_once == 25
    assert lines == [f"{size} samples at once do not fit into memory; going on with {size // 2}" for size in (100, 50)]
    expected = whole.evaluate()[0]
    for run in (parts, short):
        torch.testing.assert_close(run.state.model, whole.state.model, rtol=1e-12, atol=1e-12)
        assert run.sole_run.computed == whole.sole_run.computed
        assert run.evaluate()[0]["train/loss"] == pytest.approx(float(expected["train/loss"] or 0), rel=1e-12)


def test_batches_are_divided_where_not_even_one_row_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    run = trainer("batch_size=1000", "epochs=1")
    assert run.group.samples_at_once == CPU_GRADIENT_BATCH
    monkeypatch.setattr("fl_hydra.training.memory.free_memory", lambda device: 2 * 2 * 100 * run.group.architecture.sample_bytes)
    assert trainer("batch_size=1000", "epochs=1").group.samples_at_once == 100


def test_free_memory_decides_no_bit_unless_it_is_short_which_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = arguments("localsgd", "sgdm", "K=5")
    usual = trainer(*settings, engine="stacked")
    lines: list[str] = []
    for free in (2**40, 2**30):
        monkeypatch.setattr("fl_hydra.training.memory.free_memory", lambda device, free=free: free)
        other = Trainer(experiment(*settings), engine="stacked", notify=lines.append)
        assert (other.group.rows_at_once, other.group.samples_at_once) == (usual.group.rows_at_once, usual.group.samples_at_once)
    assert not lines
    monkeypatch.setattr("fl_hydra.training.memory.free_memory", lambda device: 2 * 16 * 4 * usual.group.architecture.sample_bytes)
    short = Trainer(experiment(*settings), engine="stacked", notify=lines.append)
    assert short.group.rows_at_once < 5
    assert lines == [
        f"memory is short: {short.group.rows_at_once} rows of a run at once in place of 5; with more memory the last digits would differ"
    ]
    again = Trainer(experiment(*settings), engine="stacked", rows_at_once=usual.group.rows_at_once, notify=lines.append)
    assert again.group.rows_at_once == usual.group.rows_at_once, "what a run was begun with is what it goes on with"


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


def _freeze(module: nn.Module) -> None:
    next(module.parameters()).requires_grad_(False)


def _between(function: Callable[[Tensor], Tensor]) -> Callable[[nn.Module], None]:
    return lambda module: setattr(module, "between", function)


ODD: dict[str, tuple[Callable[[nn.Module], None], str]] = {
    "a dropout layer": (_between(nn.Dropout(0.5)), "draws random numbers"),
    "a functional dropout": (_between(nn.functional.dropout), "draws random numbers"),
    "a dropout of batches": (_between(lambda value: nn.functional.dropout(value) if len(value) > 1 else value), "draws random numbers"),
    "another number of features": (_between(lambda value: value[:, :5]), "its forward pass ends with RuntimeError"),
    "a random rectifier": (_between(nn.RReLU()), "draws random numbers"),
    "noise": (_between(lambda value: value + torch.randn_like(value)), "draws random numbers"),
    "batch normalisation": (_between(nn.BatchNorm1d(256)), "between.running_mean.* are buffers"),
    "a frozen parameter": (_freeze, "linear.weight have requires_grad=False"),
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
        _check_models([experiment("algorithm=fedavg"), experiment("algorithm=fedavg", model=OddModel())])


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
    monkeypatch.setattr("fl_hydra.training.engines.copy.deepcopy", copies.append)
    run.run_round()
    assert not copies
    for _ in range(2):
        other.run_round()
    torch.testing.assert_close(run.state.model, other.state.model, rtol=1e-12, atol=1e-12)


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    run = trainer(*arguments("fedavg", "sgd"), engine="stacked")

    def broken(*args: Any) -> Any:
        raise RuntimeError("something else")

    run.group.engine._own_gradient = run.group.engine._shared_gradient = broken  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match="something else"):
        run.run_round()


@pytest.mark.parametrize("algorithm", list(algorithms))
@pytest.mark.parametrize("engine", ["loop", "stacked"])
def test_replayed_steps_are_the_steps(algorithm: str, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a graph replays reads fixed memory only: here a replay runs what was recorded in an earlier round once more."""
    monkeypatch.setattr("fl_hydra.training.round_inputs.GRAPH_STEPS", 3)
    settings = (*arguments(algorithm, "sgdm", "precision=fp64"), "rounds=null", "samples=4000")
    eager, replayed = trainer(*settings, engine=engine), trainer(*settings, engine=engine)
    replays = [0]

    def record(work: Any) -> Any:
        # Recording a graph runs the code without its effects.
        buffers = [replayed.group.buffers.meter, *replayed.group.buffers.kept.values()]
        for place in replayed.group.buffers.lanes:
            buffers += [place.parameters, *place.slots.values()]
        kept = [buffer.clone() for buffer in buffers]
        work()
        for buffer, value in zip(buffers, kept, strict=True):
            buffer.copy_(value)

        def replay() -> None:
            replays[0] += 1
            work()

        return replay

    replayed.group.launcher = GraphLauncher(record)
    while not eager.finished:
        eager.run_round()
        replayed.run_round()
    assert replays[0] > 3 or isinstance(replayed.sole_run.experiment.algorithm, EventDriven), "events differ from round to round"
    assert torch.equal(eager.state.model, replayed.state.model)
    assert eager.evaluate() == replayed.evaluate()


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
