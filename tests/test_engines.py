"""Engines against each other, and the promise that a local step can be captured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fl_hydra.algorithms.base import algorithms
from fl_hydra.algorithms.fedavg import FedAvg
from fl_hydra.training.engines import StackedEngine
from fl_hydra.training.rows import Batch, Gradient, Rows
from fl_hydra.training.trainer import Trainer
from tests.support.make import trainer

SETTINGS = {
    "centralized": ("rounds=2",),
    "localsgd": ("K=3", "J=4", "samples=700"),  # the last round is cut, with rows that stop at different steps
    "fedavg": ("K=10", "C=0.3", "J=3", "samples=700"),
}
OPTIMIZERS = ("sgd", "sgdm", "adamw")


def arguments(algorithm: str, optimizer: str, *more: str) -> list[str]:
    return [f"algorithm={algorithm}", *SETTINGS.get(algorithm, SETTINGS["fedavg"]), f"optimizer={optimizer}", "batch_size=16", *more]


@pytest.mark.parametrize("algorithm", list(algorithms))
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("precision", "tolerance"), [("fp64", 1e-12), ("fp32", 2e-5)])
def test_engines_agree(algorithm: str, optimizer: str, precision: str, tolerance: float) -> None:
    loop, stacked = (trainer(*arguments(algorithm, optimizer, f"precision={precision}"), engine=engine) for engine in ("loop", "stacked"))
    while not loop.finished:
        loop.run_round()
        stacked.run_round()
    torch.testing.assert_close(loop.state.model, stacked.state.model, rtol=tolerance, atol=tolerance)
    one, other = loop.evaluate()[0], stacked.evaluate()[0]
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert other[name] == pytest.approx(
            value, rel=100 * tolerance, abs=0.011 if "acc" in name and precision == "fp32" else tolerance
        ), name


def test_bf16_engines_agree_roughly_and_keep_fp32_masters() -> None:
    loop, stacked = (trainer(*arguments("fedavg", "sgd", "precision=bf16"), engine=engine) for engine in ("loop", "stacked"))
    start = loop.state.model.clone()
    while not loop.finished:
        loop.run_round()
        stacked.run_round()
    assert loop.state.model.dtype == torch.float32
    moved = (loop.state.model - start).norm()
    assert (loop.state.model - stacked.state.model).norm() < 0.05 * moved


def test_many_models_are_evaluated_as_each_alone() -> None:
    runs = [trainer("rounds=1", "precision=fp64", engine=engine) for engine in ("loop", "stacked")]
    models = torch.randn(3, runs[0].layout.size, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) / 10
    together = [run.engine.evaluate(models, run.split.test) for run in runs]
    torch.testing.assert_close(together[0], together[1], rtol=1e-12, atol=1e-9)
    alone = runs[0].engine.evaluate(models[1:2], runs[0].split.test)
    torch.testing.assert_close(together[1][1:2], alone, rtol=1e-12, atol=1e-9)


def test_the_first_step_is_shared_only_while_rows_are_equal() -> None:
    """A step that moves the rows before it asks for the gradient gets the gradient where they are, in every engine."""

    @dataclass
    class Sharp(FedAvg):
        def step(self, rows: Rows, gradient: Gradient, batches: Sequence[Batch], j: int) -> None:
            first = gradient(rows.parameters, batches[0]).clone()
            rows.parameters.add_(first, alpha=0.1)
            there = gradient(rows.parameters, batches[0]).clone()
            rows.parameters.sub_(first, alpha=0.1)
            rows.descend(there, j)

    runs = [trainer(*arguments("fedavg", "sgd", "precision=fp64"), engine=engine, algorithm=Sharp()) for engine in ("loop", "stacked")]
    asked = {True: 0, False: 0}
    engine = runs[1].engine
    assert isinstance(engine, StackedEngine)
    shared = engine._shared

    def counted(parameters: torch.Tensor) -> torch.Tensor | None:
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
    """One round whose local steps, gathering and augmenting included, run under the guard."""
    train = run._train_block

    def guarded(*args: Any) -> None:
        with Capturable():
            train(*args)

    run._train_block = guarded  # type: ignore[method-assign, assignment]
    run.run_round()


@pytest.mark.parametrize("algorithm", list(algorithms))
@pytest.mark.parametrize("engine", ["loop", "stacked"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_local_steps_are_capturable(algorithm: str, engine: str, optimizer: str, precision: str) -> None:
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
