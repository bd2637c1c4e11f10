"""The promise that a local step can be captured, and replayed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch

from fl_hydra.algorithms.base import algorithms
from fl_hydra.algorithms.events import EventDriven
from fl_hydra.algorithms.fedavg import FedAvg
from fl_hydra.participation.base import Cohort, Round
from fl_hydra.participation.schemes import Uniform
from fl_hydra.seams.rows import Batch, Gradient, Rows
from fl_hydra.training.trainer import Trainer
from tests.support.capture import Recorder, under_guard
from tests.support.engines import KINDS, PAIRS, arguments
from tests.support.make import config, experiment, inner, kind, trainer


@pytest.mark.parametrize(
    ("algorithm", "optimizer", "engine", "precision"),
    [
        *((*pair, engine, "fp32") for pair in PAIRS for engine in ("loop", "stacked") if not algorithms[pair[0]].reads_back),
        *((*pair, "im2col", "fp32") for pair in KINDS),
        *((*pair, engine, "bf16") for pair in KINDS for engine in ("loop", "stacked", "im2col")),
    ],
)
def test_a_round_reads_nothing_back(algorithm: str, optimizer: str, engine: str, precision: str) -> None:
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


@pytest.mark.parametrize(
    ("algorithm", "engine"),
    [
        *((algorithm, "stacked") for algorithm in algorithms if not algorithms[algorithm].reads_back),
        *((algorithm, "loop") for algorithm in dict(KINDS)),
    ],
)
def test_replayed_steps_are_the_steps(algorithm: str, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a graph replays reads fixed memory only: here a replay runs what was recorded in an earlier round once more."""
    monkeypatch.setattr("fl_hydra.training.round_inputs.GRAPH_STEPS", 3)
    samples = 900 if kind(algorithm) == "fedavg" else 4000 if algorithm in ("centralized", "hierarchical") else 2000  # by length of a round
    samples *= config(f"algorithm={algorithm}").algorithm.batches_per_step
    settings = (*arguments(algorithm, inner(algorithm), "precision=fp64"), "rounds=null", f"samples={samples}")
    eager, replayed = trainer(*settings, engine=engine), trainer(*settings, engine=engine)
    recorder = Recorder(replayed)
    while not eager.finished:
        eager.run_round()
        replayed.run_round()
    assert sum(recorder.replays) > 3 or isinstance(replayed.sole_run.experiment.algorithm, EventDriven), "events differ from round to round"
    assert torch.equal(eager.state.model, replayed.state.model)
    assert eager.evaluate() == replayed.evaluate()


@dataclass
class Alternating(Uniform):
    """Cohorts of three, two and four clients in turn."""

    def cohort(self, round: Round) -> Cohort:
        return Cohort(super().cohort(round).ids[: (3, 2, 4)[round.round % 3]])


@pytest.mark.parametrize("algorithm", ["fedavg", "scaffold", "fedper"])
def test_graphs_outlive_a_change_of_the_cohorts_size(algorithm: str) -> None:
    """Memory is that of the largest cohort, and a graph is recorded once for each size and run, not again after every change."""
    settings = (f"algorithm={algorithm}", "optimizer=sgd", "K=8", "C=0.5", "J=2", "samples=4000", "batch_size=16", "precision=fp64")
    e = experiment(*settings, participation=Alternating())
    pack = [replace(e, seed=seed) for seed in (0, 1)]
    eager, replayed = Trainer(*pack, engine="stacked"), Trainer(*pack, engine="stacked")
    recorder = Recorder(replayed)
    for _ in range(12):
        eager.run_round()
        replayed.run_round()
    assert len(recorder.replays) <= 3 * 2 and sum(recorder.replays) > 2 * len(recorder.replays)
    assert torch.equal(eager.state.model, replayed.state.model)
    assert eager.evaluate([0, 1]) == replayed.evaluate([0, 1])
