"""What only a GPU can show; `make gpu-check` runs these first."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fl_hydra.algorithms.base import algorithms
from fl_hydra.training.engine_selection import ENGINES
from fl_hydra.training.trainer import Trainer
from tests.support.layers import Layered
from tests.support.make import experiment, inner, kind, suited, write_shakespeare
from tests.support.packs import assert_same, members, train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype"),
]

SETTINGS = {
    "centralized": ("rounds=4", "batch_size=64"),
    "localsgd": ("K=4", "J=4", "batch_size=16", "samples=1500"),
    "fedavg": ("K=12", "C=0.25", "J=3", "batch_size=16", "samples=1500"),
}

TEXTS = {
    "windows": ("dataset=shakespeare", "dataset.users=4", "dataset.min_samples=900", "K=4"),
    "sequences": ("dataset=shakespeare_sequences", "K=6"),
}
RECURRENT = [name for name in ENGINES if "im2col" not in name]
"""The engines that differ where there are no convolutions."""


def can_use(algorithm: str, engine: str) -> bool:
    """Whether an engine can take a method's steps: those that read something back cannot be recorded."""
    return not (algorithms[algorithm].reads_back and engine.startswith("graph"))


def text(data: Path, kind: str, *more: str) -> list[str]:
    """A run on a short text, whose last round is cut."""
    write_shakespeare(data)
    small = ("model.hidden=24", "batch_size=4", "algorithm=fedavg", "C=0.5", "J=3", "samples=140", f"data={data}")
    return [*TEXTS[kind], *small, *more]


def arguments(algorithm: str, *more: str) -> list[str]:
    return [f"algorithm={algorithm}", *suited(algorithm), f"optimizer={inner(algorithm)}", *SETTINGS[kind(algorithm)], *more]


def trained(run: Trainer) -> Trainer:
    while not run.finished:
        run.run_round()
    return run


def assert_never_waits(run: Trainer) -> None:
    """In the third round, when graphs are recorded."""
    for _ in range(2):
        run.run_round()
    try:
        torch.cuda.set_sync_debug_mode("error")
        run.run_round()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def assert_resumes(settings: list[str], engine: str, rounds: int) -> None:
    """A run that is interrupted after so many rounds ends with the same bits."""
    whole = trained(Trainer(experiment(*settings), engine=engine, device="cuda"))
    first, second = (Trainer(experiment(*settings), engine=engine, device="cuda") for _ in range(2))
    for _ in range(rounds):
        first.run_round()
    second.restore(first.checkpoint())
    assert torch.equal(trained(second).state.model, whole.state.model)


@pytest.mark.parametrize(("algorithm", "engine"), [(name, engine) for name in algorithms for engine in ENGINES if can_use(name, engine)])
def test_engines_agree_with_the_loop_on_the_cpu(algorithm: str, engine: str) -> None:
    settings = arguments(algorithm, "precision=fp64", "dataset.flip=true")
    cpu = trained(Trainer(experiment(*settings), engine="loop"))
    gpu = trained(Trainer(experiment(*settings), engine=engine, device="cuda"))
    torch.testing.assert_close(gpu.state.model.cpu(), cpu.state.model, rtol=1e-10, atol=1e-10)
    assert gpu.sole_run.computed == cpu.sole_run.computed


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
@pytest.mark.parametrize("algorithm", [name for name in algorithms if not algorithms[name].reads_back and name != "fedala"])
def test_a_round_never_waits_for_the_gpu(algorithm: str, engine: str) -> None:
    rounds = () if kind(algorithm) == "centralized" else ("samples=9000",)  # three rounds, of hierarchical periods too
    run = Trainer(experiment(*arguments(algorithm, *rounds)), engine=engine, device="cuda")
    assert_never_waits(run)


@pytest.mark.parametrize(("algorithm", "engine"), [(name, engine) for name in algorithms for engine in ENGINES if can_use(name, engine)])
def test_packed_equals_alone(algorithm: str, engine: str) -> None:
    settings = members(algorithm)
    together = train(Trainer(*(experiment(*s) for s in settings), engine=engine, device="cuda"))
    for s in settings:
        (one,) = train(Trainer(experiment(*s), engine=engine, device="cuda"))
        (other,) = [row for row in together if (row["seed"], row["samples"], row["lr"]) == (one["seed"], one["samples"], one["lr"])]
        assert_same(other, one)


@pytest.mark.parametrize("engine", list(ENGINES))
@pytest.mark.parametrize("algorithm", ["fedavg", "gossip", "a2cid2"])
def test_running_statistics_and_dropout_agree_with_the_loop_on_the_cpu(algorithm: str, engine: str) -> None:
    made = experiment(*arguments(algorithm, "precision=fp64"), model=Layered(dropout=0.3, frozen=True))
    cpu, gpu = trained(Trainer(made, engine="loop")), trained(Trainer(made, engine=engine, device="cuda"))
    for name, tensor in cpu.state.tensors().items():
        torch.testing.assert_close(gpu.state.tensors()[name].cpu(), tensor, rtol=1e-10, atol=1e-10)
    rounds = experiment(*arguments(algorithm, "samples=9000"), model=Layered(dropout=0.3, frozen=True))
    assert_never_waits(Trainer(rounds, engine=engine, device="cuda"))


@pytest.mark.parametrize("engine", list(ENGINES))
def test_a_resumed_run_equals_an_uninterrupted_one_bit_by_bit(engine: str) -> None:
    assert_resumes(arguments("fedavg"), engine, rounds=4)


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


@pytest.mark.parametrize("engine", RECURRENT)
@pytest.mark.parametrize("kind", list(TEXTS))
def test_text_agrees_with_the_loop_on_the_cpu(kind: str, engine: str, tmp_path: Path) -> None:
    settings = text(tmp_path, kind, "precision=fp64")
    cpu = trained(Trainer(experiment(*settings), engine="loop"))
    gpu = trained(Trainer(experiment(*settings), engine=engine, device="cuda"))
    torch.testing.assert_close(gpu.state.model.cpu(), cpu.state.model, rtol=1e-10, atol=1e-10)
    assert gpu.evaluate()[0]["test/loss"] == pytest.approx(cpu.evaluate()[0]["test/loss"], rel=1e-9)


@pytest.mark.parametrize("engine", RECURRENT)
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("tf32", 3e-2), ("bf16", 1e-1), ("fp16", 3e-2)])
def test_precisions_of_text_stay_near_fp64(engine: str, precision: str, tolerance: float, tmp_path: Path) -> None:
    exact = Trainer(experiment(*text(tmp_path, "windows", "precision=fp64")), engine="stacked", device="cuda")
    start = exact.state.model.clone()
    trained(exact)
    run = trained(Trainer(experiment(*text(tmp_path, "windows", f"precision={precision}")), engine=engine, device="cuda"))
    assert (run.state.model.double() - exact.state.model).norm() < tolerance * (exact.state.model - start).norm()


@pytest.mark.parametrize("engine", RECURRENT)
@pytest.mark.parametrize("kind", list(TEXTS))
def test_a_round_of_text_never_waits_for_the_gpu(kind: str, engine: str, tmp_path: Path) -> None:
    run = Trainer(experiment(*text(tmp_path, kind)), engine=engine, device="cuda")
    assert_never_waits(run)


@pytest.mark.parametrize("engine", RECURRENT)
@pytest.mark.parametrize("size", [4, 64])
def test_text_resumes_bit_by_bit(engine: str, size: int, tmp_path: Path) -> None:
    """64 windows are a usual batch: large enough for kernels of two branches to overlap."""
    assert_resumes(text(tmp_path, "windows", f"batch_size={size}", f"samples={23 * size}"), engine, rounds=3)


@pytest.mark.parametrize("participation", ["power_of_choice", "oort", "fedcor", "afl"])
def test_losses_on_the_gpu_choose_the_same_cohorts(participation: str) -> None:
    settings = arguments("fedavg", "precision=fp64", f"participation={participation}")
    cpu = trained(Trainer(experiment(*settings), engine="loop"))
    gpu = trained(Trainer(experiment(*settings), engine="graph", device="cuda"))
    torch.testing.assert_close(gpu.state.model.cpu(), cpu.state.model, rtol=1e-10, atol=1e-10)
    assert gpu.sole_run.traffic == cpu.sole_run.traffic and gpu.sole_run.evaluated == cpu.sole_run.evaluated
