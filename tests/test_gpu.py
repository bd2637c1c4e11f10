"""What only a GPU can show; `make gpu-check` runs these first."""

from __future__ import annotations

import pytest
import torch

from fl_hydra.algorithms.base import algorithms
from fl_hydra.training.choice import ENGINES
from fl_hydra.training.trainer import Trainer
from tests.support.make import experiment, kind
from tests.test_packing import assert_same, members, train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]

SETTINGS = {
    "centralized": ("rounds=4", "batch_size=64"),
    "localsgd": ("K=4", "J=4", "batch_size=16", "samples=1500"),
    "fedavg": ("K=12", "C=0.25", "J=3", "batch_size=16", "samples=1500"),
}


def arguments(algorithm: str, *more: str) -> list[str]:
    return [f"algorithm={algorithm}", "optimizer=sgdm", *SETTINGS[kind(algorithm)], *more]


def trained(run: Trainer) -> Trainer:
    while not run.finished:
        run.run_round()
    return run


@pytest.mark.parametrize("engine", list(ENGINES))
@pytest.mark.parametrize("algorithm", list(algorithms))
def test_engines_agree_with_the_loop_on_the_cpu(algorithm: str, engine: str) -> None:
    settings = arguments(algorithm, "precision=fp64", "dataset.flip=true")
    cpu = trained(Trainer(experiment(*settings), engine="loop"))
    gpu = trained(Trainer(experiment(*settings), engine=engine, device="cuda"))
    torch.testing.assert_close(gpu.state.model.cpu(), cpu.state.model, rtol=1e-10, atol=1e-10)
    assert gpu.member.computed == cpu.member.computed


@pytest.mark.parametrize("engine", list(ENGINES))
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("tf32", 3e-2), ("bf16", 1e-1), ("fp16", 3e-2)])
def test_precisions_stay_near_fp64(engine: str, precision: str, tolerance: float) -> None:
    exact = Trainer(experiment(*arguments("fedavg", "precision=fp64")), engine="stacked", device="cuda")
    start = exact.state.model.clone()
    trained(exact)
    run = trained(Trainer(experiment(*arguments("fedavg", f"precision={precision}")), engine=engine, device="cuda"))
    moved = (exact.state.model - start).norm()
    assert (run.state.model.double() - exact.state.model).norm() < tolerance * moved


@pytest.mark.parametrize("engine", list(ENGINES))
@pytest.mark.parametrize("algorithm", list(algorithms))
def test_a_round_never_waits_for_the_gpu(algorithm: str, engine: str) -> None:
    run = Trainer(experiment(*arguments(algorithm)), engine=engine, device="cuda")
    for _ in range(2):
        run.run_round()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run.run_round()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("engine", list(ENGINES))
@pytest.mark.parametrize("algorithm", list(algorithms))
def test_packed_equals_alone(algorithm: str, engine: str) -> None:
    settings = members(algorithm, "precision=fp64")
    together = train(Trainer(*(experiment(*s) for s in settings), engine=engine, device="cuda"))
    for s in settings:
        (one,) = train(Trainer(experiment(*s), engine=engine, device="cuda"))
        (other,) = [row for row in together if (row["seed"], row["samples"], row["lr"]) == (one["seed"], one["samples"], one["lr"])]
        assert_same(other, one, 1e-10)


@pytest.mark.parametrize("engine", list(ENGINES))
def test_a_resumed_run_equals_an_uninterrupted_one_bit_by_bit(engine: str) -> None:
    settings = arguments("fedavg")
    whole = trained(Trainer(experiment(*settings), engine=engine, device="cuda"))
    first = Trainer(experiment(*settings), engine=engine, device="cuda")
    for _ in range(4):
        first.run_round()
    second = Trainer(experiment(*settings), engine=engine, device="cuda")
    second.restore(first.checkpoint())
    assert torch.equal(trained(second).state.model, whole.state.model)


def test_auto_measures_and_decides() -> None:
    lines: list[str] = []
    run = Trainer(experiment(*arguments("fedavg")), device="cuda", notify=lines.append)
    assert run.engine_name in ENGINES
    assert lines == [], "no engine fails on this card"


def test_rows_that_do_not_fit_are_trained_in_parts() -> None:
    settings = arguments("localsgd", "precision=fp64", "K=5")
    whole = trained(Trainer(experiment(*settings), engine="graph", device="cuda"))
    parts = trained(Trainer(experiment(*settings), engine="graph", device="cuda", rows_at_once=2))
    torch.testing.assert_close(parts.state.model, whole.state.model, rtol=1e-10, atol=1e-10)
