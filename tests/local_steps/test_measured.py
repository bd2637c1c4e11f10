"""Numbers of local steps that follow what is measured, and the measurements."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from fl_hydra.algorithms.base import State
from fl_hydra.algorithms.localsgd import LocalSGD
from fl_hydra.local_steps.base import Measured, Memory
from fl_hydra.local_steps.measured import Drift, Loss, Noise
from fl_hydra.local_steps.scheduled import Fixed
from fl_hydra.seams.clients import Clients
from fl_hydra.seams.rows import Batch
from fl_hydra.training.noise import DECAY, NoiseScale
from tests.support.exact import RecordingLocalSGD, assert_exact, module_of
from tests.support.small import PLAIN, column, finish, on_quadratics, small, trained


def learned(rule: Any, J: int, *rounds: tuple[Measured, float]) -> list[int]:
    """The number of steps after each round, of 32 samples a step, that has shown something when a part of the budget was spent."""
    memory: Memory = {}
    numbers = []
    for measured, progress in rounds:
        rule.observe(measured, J, 32, progress, memory)
        numbers.append(rule.steps(J, progress, 0, memory))
    return numbers


def test_loss_rule_is_gossip_aga_s() -> None:
    """F_init <- (F_init + F) / 2 in the warm-up, from 8 over 6 to 7; then H = ceil(F_init / F H_init)."""
    rounds = [(8.0, 0.05), (6.0, 0.09), (7.0, 0.1), (6.9, 0.2), (2.0, 0.3), (float("nan"), 0.4), (70.0, 0.5), (0.001, 0.6), (3.5, 0.7)]
    assert learned(Loss(start=4, warmup=0.1), 30, *((Measured(loss=loss), progress) for loss, progress in rounds)) == [
        *(4, 4),
        *(4, 5, 14, 14, 1, 30, 8),
    ]


def test_drift_rule_doubles_below_and_halves_above() -> None:
    def ratio(value: float) -> tuple[Measured, float]:
        return Measured(drift=3 * value, progress=3.0), 0.5

    still = Measured(drift=0.0, progress=0.0), 0.5
    rounds = [ratio(r) for r in (0.1, 0.19, 0.21, 0.0, 0.59, 0.61, 1.0, 5.0, 2.0, 1.0)]
    assert learned(Drift(start=4), 30, *rounds, still) == [8, 16, 16, 30, 30, 15, 7, 3, 1, 1, 1]


def test_noise_rule_makes_a_round_as_large_as_the_noise_scale() -> None:
    scales = [320.0, 330.0, 10_000.0, float("nan"), 5.0]
    assert learned(Noise(start=4), 16, *((Measured(noise=scale), 0.5) for scale in scales)) == [10, 10, 16, 16, 1]


@dataclass
class Watching(Fixed):
    """J in every round, with a look at what measuring rules are shown."""

    measures: ClassVar[frozenset[str]] = frozenset({"loss", "drift", "progress", "noise"})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.seen: list[Measured] = []
        self.samples: list[int] = []

    def observe(self, measured: Measured, J: int, samples: int, progress: float, memory: Memory) -> None:
        self.seen.append(measured)
        self.samples.append(samples)


@pytest.mark.parametrize("engine", ["loop", "stacked"])
def test_rules_see_the_mean_loss_of_the_round(engine: str) -> None:
    rule = Watching()
    run = small("algorithm=localsgd", "K=3", "J=4", "samples=250", engine=engine, local_steps=rule)
    while not run.finished:
        run.run_round()
        assert rule.seen[-1].loss == pytest.approx(run.evaluate()[0]["train/loss"], rel=1e-12)
    assert len({measured.loss for measured in rule.seen}) == 6


@dataclass
class Collecting(LocalSGD):
    """LocalSGD as a method has it that needs all ends."""

    needs_ends: ClassVar[bool] = True

    def update(self, state: State, clients: Clients, starts: Tensor, ends: Tensor) -> None:
        self.outer(state, clients, clients.mean(ends))


@pytest.mark.parametrize("algorithm", [LocalSGD(), Collecting()], ids=lambda algorithm: type(algorithm).__name__)
def test_drift_and_progress_are_their_formulas(algorithm: LocalSGD) -> None:
    """drift = sum |w_k - w|^2 / (m (m - 1)), progress = |w - x|^2."""
    rule, a = Watching(), column(1.0, 2.0, 4.0)
    run, b = on_quadratics("algorithm=localsgd", "K=3", "J=3", "rounds=2", *PLAIN, a=a, local_steps=rule, algorithm=algorithm)
    x = torch.zeros_like(b[0])
    for round in range(2):
        ends = b + (1 - 0.1 * a) ** 3 * (x - b)
        mean = ends.mean(0)
        run.run_round()
        assert rule.seen[round].drift == pytest.approx(float((ends - mean).square().sum() / 6), rel=1e-9)
        assert rule.seen[round].progress == pytest.approx(float((mean - x).square().sum()), rel=1e-9)
        x = mean


def test_drift_is_what_independent_noise_adds_to_progress() -> None:
    """Workers that follow nothing but their own noise have drift = progress on average; workers that go the same way have none."""
    noise = torch.Generator().manual_seed(0)
    rule = Watching()
    run, _ = on_quadratics("algorithm=localsgd", "K=4", "J=3", "rounds=60", *PLAIN, a=torch.ones(4, 1), local_steps=rule)
    run.group.engine.gradient = lambda parameters, batch: torch.randn(parameters.shape, dtype=torch.float64, generator=noise)  # type: ignore[method-assign, assignment, misc]
    finish(run)
    drift, progress = (np.array([getattr(measured, name) for measured in rule.seen]) for name in ("drift", "progress"))
    differences = drift - progress
    assert abs(differences.mean()) < 4 * differences.std() / 60**0.5
    assert drift.sum() / progress.sum() == pytest.approx(1, abs=0.1)

    rule.seen.clear()
    together, _ = on_quadratics(
        *("algorithm=localsgd", "K=4", "J=3", "rounds=3", *PLAIN), a=torch.ones(4, 1), b=torch.ones(4, 1), local_steps=rule
    )
    finish(together)
    assert all(abs(measured.drift) < 1e-12 * measured.progress for measured in rule.seen)


# The gradient noise scale


def test_estimates_of_the_noise_scale_are_unbiased() -> None:
    """On Gaussian gradients, for two runs of 3 and 5 rows that train together, in blocks that cut the first run in two."""
    rows, batch, P, draws = [3, 5], 8, 6, 2000
    G = torch.stack([torch.full((P,), 0.3), torch.linspace(-0.4, 0.4, P)]).double()
    deviation = torch.stack([torch.linspace(0.5, 2.0, P), torch.ones(P)]).double()
    run_of_row = torch.tensor([run for run, count in enumerate(rows) for _ in range(count)])
    noise = NoiseScale(2, torch.device("cpu"))
    noise.allocate(2, rows, P, torch.float64)
    generator = torch.Generator().manual_seed(0)
    blocks = (0, 0, slice(0, 2)), (1, 0, slice(2, 3)), (0, 1, slice(3, 8))
    """Lanes, runs and rows."""

    def of_rows(block: slice) -> Batch:
        runs, none = run_of_row[block], np.zeros(0, np.int64)
        return Batch(torch.empty(0), runs, None, torch.empty(0), none, none)

    def gaussian(parameters: Tensor, batch_of_rows: Batch) -> Tensor:
        """The mean of a batch of gradients of single samples, of the run that stands in the place of the targets."""
        runs = batch_of_rows.targets
        noises = torch.randn(parameters.shape, dtype=torch.float64, generator=generator)
        answer: Tensor = G[runs] + deviation[runs] / batch**0.5 * noises
        return answer

    estimates = []
    for _ in range(draws):
        noise.averages.zero_()
        noise.begin()
        for lane, run, block in blocks:
            noise.watch(gaussian(torch.zeros(block.stop - block.start, P), of_rows(block)), lane, run, block)
        noise.end(batch, [True, True])
        estimates.append(noise.averages / (1 - DECAY))
    together = torch.stack(estimates)
    mean, error = together.mean(0), together.std(0) / draws**0.5
    truth = torch.stack([G.square().sum(1), deviation.square().sum(1)], 1)
    assert (abs(mean - truth) < 4 * error).all()
    assert (error / truth < 0.05).all(), "else the test says nothing"


def test_noise_scale_of_a_round_is_that_of_its_first_gradients() -> None:
    """Equations A.2 and A.3 with K small batches, all at the same model; a last round without a whole step does not count."""
    algorithm = RecordingLocalSGD()
    overrides = ("algorithm=localsgd", "K=3", "J=4", "samples=404", "noise_scale=true", "model.hidden=16", "batch_size=32")
    run = small(*overrides, algorithm=algorithm)
    module = module_of(run)
    run.run_round()
    gradients = []
    for inputs, targets, _ in algorithm.seen[::4]:  # one worker after the other
        module.zero_grad()
        torch.nn.functional.cross_entropy(module(inputs[0]), targets[0]).backward()
        gradients.append(run.group.layout.flat(parameter.grad for parameter in module.parameters() if parameter.grad is not None))
    small_square = float(torch.stack(gradients).square().sum(1).mean())
    large_square = float(torch.stack(gradients).mean(0).square().sum())
    signal, noise = (96 * large_square - 32 * small_square) / 64, (small_square - large_square) / (1 / 32 - 1 / 96)
    assert_exact(run.measurements.noise.averages[0] / (1 - DECAY), torch.tensor([signal, noise], dtype=torch.float64))  # type: ignore[union-attr]
    assert run.evaluate()[0]["noise_scale"] == pytest.approx(noise / signal)
    finish(run)
    assert run.sole_run.round == 2
    assert run.evaluate()[0]["noise_scale"] == pytest.approx(noise / signal)

    stacked = small(*overrides, engine="stacked")
    stacked.run_round()
    assert_exact(stacked.measurements.noise.averages, run.measurements.noise.averages)  # type: ignore[union-attr]


def test_measuring_the_noise_scale_costs_a_mean_and_changes_nothing() -> None:
    common = ("algorithm=localsgd", "K=4", "J=2", "rounds=5", "model.hidden=16", "batch_size=32")
    silent, measured = trained(*common), trained(*common, "noise_scale=true")
    assert torch.equal(silent.state.model, measured.state.model)
    assert silent.sole_run.computed == measured.sole_run.computed
    scale = measured.evaluate()[0]["noise_scale"]
    assert scale is not None and 0 < scale < float("inf")
    assert "noise_scale" not in silent.evaluate()[0]
    assert measured.sole_run.traffic.bytes_up == 2 * silent.sole_run.traffic.bytes_up
    assert measured.sole_run.traffic.averages == 2 * silent.sole_run.traffic.averages


def test_noise_rule_is_shown_the_noise_scale() -> None:
    rule = Watching()
    run = small(*("algorithm=localsgd", "K=4", "J=2", "rounds=4", "noise_scale=true", "model.hidden=16", "batch_size=32"), local_steps=rule)
    while not run.finished:
        run.run_round()
        assert rule.seen[-1].noise == pytest.approx(float(run.measurements.noise.values()[0]), nan_ok=True)  # type: ignore[union-attr]
    assert np.isfinite(rule.seen[-1].noise)


def test_rules_are_told_the_samples_of_a_step_of_all_workers() -> None:
    """A step of Per-FedAvg takes two batches."""
    for method, batches in (("fedavg", 1), ("per_fedavg", 2)):
        rule = Watching()
        run = small(f"algorithm={method}", "K=4", "C=0.5", "J=2", "rounds=1", local_steps=rule)
        run.run_round()
        assert rule.samples == [2 * batches * 4], method
