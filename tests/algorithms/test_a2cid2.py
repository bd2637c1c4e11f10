"""A2CiD2 and AD-PSGD: workers that meet in pairs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import expm
from torch import Tensor

from fl_hydra.algorithms.a2cid2 import A2CiD2, AcidState
from fl_hydra.algorithms.events import Program
from fl_hydra.decentralized.clocks import Events, acid_constants
from fl_hydra.speeds.models import Linear
from fl_hydra.training.fabric import Traffic
from fl_hydra.training.trainer import Trainer
from tests.support.exact import assert_exact
from tests.support.workers import PAIRS, RATE, disagree, distance, drawn_events, make, nothing, on, pull, state_of, timed, train


def acid_of(run: Trainer) -> AcidState:
    assert isinstance(run.state, AcidState)
    return run.state


def acid(**hyper: Any) -> tuple[A2CiD2, AcidState]:
    """The method, and four workers that agree about nothing."""
    workers, shadows = torch.randn(2, 1, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return A2CiD2(**hyper), AcidState(workers.mean(1), workers, shadows)


def one_event(time: float, worker: int, peer: int, unit: float = 1.0) -> Program:
    events = Events(np.array([time]), np.array([worker]), np.array([peer]))
    return Program.of(events, [], 1, np.zeros(4, np.int64), 0.0, unit)


FIRST = np.array([0])


def both(state: AcidState) -> Tensor:
    """x and x~, [2, K, P]."""
    return torch.cat([state.workers, state.shadows])


def exponential(eta: float, time: float) -> Tensor:
    return torch.from_numpy(expm(time * np.array([[-eta, eta], [eta, -eta]])))  # torch.matrix_exp has errors of 1e-12


@pytest.mark.parametrize("unit", [1.0, 0.02])
def test_between_events_each_worker_mixes_by_the_matrix_exponential(unit: float) -> None:
    """Whatever the seconds of a gradient are: time counts in gradients. Of x + x~ nothing is lost."""
    algorithm, state = acid()
    begun = both(state)
    mixed = torch.einsum("ab,bkp->akp", exponential(acid_constants("ring", 4).eta, 0.7), begun)
    program = one_event(0.7 * unit, 2, -1, unit)
    algorithm.before(state, 0, program, FIRST)
    assert_exact(both(state)[:, 2], mixed[:, 2])
    assert torch.equal(both(state)[:, [0, 1, 3]], begun[:, [0, 1, 3]])
    algorithm.settle(state, 0, program)
    assert_exact(both(state), mixed)
    assert_exact(both(state).sum(0), begun.sum(0))
    assert_exact(state.model[0], mixed[0].mean(0))


def test_workers_mix_before_they_meet() -> None:
    algorithm, state = acid()
    mixed = torch.einsum("ab,bkp->akp", exponential(acid_constants("ring", 4).eta, 0.4), both(state))[:, :2]
    algorithm.communicate(state, 0, one_event(0.4, 0, 1), FIRST, Traffic())
    assert_exact(state.workers[0, 0], mixed[0].mean(0))
    assert_exact(state.workers[0, 1], mixed[0].mean(0))


@pytest.mark.parametrize("accelerated", [True, False])
def test_a_meeting(accelerated: bool) -> None:
    """m = x_i - x_j; x_i <- x_i - m / 2; x~_i <- x~_i - alpha~ m. So they agree, and the sums of x and of x~ stay."""
    algorithm, state = acid(accelerated=accelerated)
    x, shadow = both(state)
    alpha = acid_constants("ring", 4).alpha_tilde if accelerated else 0.5
    algorithm.communicate(state, 0, one_event(0.0, 1, 2), FIRST, Traffic())
    m = x[1] - x[2]
    assert_exact(state.workers[0], x + torch.stack([0 * m, -m / 2, m / 2, 0 * m]))
    assert_exact(state.shadows[0], shadow + torch.stack([0 * m, -alpha * m, alpha * m, 0 * m]))
    assert_exact(both(state).sum(1), torch.stack([x, shadow]).sum(1))


def test_a_gradient_is_taken_from_the_model_and_from_its_shadow() -> None:
    algorithm, state = acid()
    begun, workers = both(state), torch.tensor([0, 3])
    step = torch.randn(2, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    algorithm.after(state, 0, workers, begun[0, workers], begun[0, workers] - step)
    assert_exact(both(state)[:, workers], begun[:, workers] - step)
    assert torch.equal(both(state)[:, 1:3], begun[:, 1:3])


def acid_by_hand(x: Tensor, events: list[Events], eta: float, alpha: float, unit: float, momentum: float) -> Tensor:
    """x and x~ [2, K, P] after all events: one after the other, and every worker mixing until each of them."""
    z = torch.stack([x, x])
    velocity = torch.zeros_like(x)
    now = 0.0
    for block in events:
        for time, i, j in zip(block.times.tolist(), block.worker.tolist(), block.peer.tolist(), strict=True):
            z = torch.einsum("ab,bkp->akp", exponential(eta, (time - now) / unit), z)
            now = time
            if j < 0:
                velocity[i] = momentum * velocity[i] + pull(z[0, i : i + 1], torch.tensor([i]))[0]
                z[:, i] -= RATE * velocity[i]
            else:
                m = z[0, i] - z[0, j]
                z[0, i] -= m / 2
                z[0, j] += m / 2
                z[1, i] -= alpha * m
                z[1, j] += alpha * m
    return z


@pytest.mark.parametrize("topology", ["ring", "exponential", "star"])
@pytest.mark.parametrize("method", PAIRS)
def test_pairwise_gossip_by_hand(method: str, topology: str) -> None:
    """All of it: lazy mixing, events together, momentum, speeds and several blocks. AD-PSGD has eta = 0."""
    speeds = Linear(spread=0.5)
    run = on(pull, method, 5, 4, 3, momentum=0.9, topology=topology, rate=1.5, speeds=speeds)
    drawn = drawn_events(run)
    x = state_of(run).workers[0].clone()
    train(run)
    constants = acid_constants(topology, 5, 1.5)
    eta, alpha = (constants.eta, constants.alpha_tilde) if method == "a2cid2" else (0.0, 0.5)
    expected = acid_by_hand(x, drawn, eta, alpha, 1 / speeds.throughput, 0.9)
    assert_exact(both(acid_of(run)), expected)
    assert_exact(run.state.model[0], expected[0].mean(0))


@pytest.mark.parametrize("method", PAIRS)
def test_consensus_is_a_fixed_point_without_gradients(method: str) -> None:
    run = on(nothing, method, 6, 4, 2)
    begun = both(acid_of(run))
    train(run)
    assert torch.equal(both(acid_of(run)), begun)


@pytest.mark.parametrize("method", PAIRS)
def test_meetings_keep_the_sum_of_all_models_and_shadows(method: str) -> None:
    run = on(nothing, method, 6, 5, 2)
    x = disagree(run)
    begun = both(acid_of(run))
    train(run)
    assert distance(x) < 0.9 * distance(begun[0])
    assert_exact(both(acid_of(run)).sum((0, 1)), begun.sum((0, 1)))
    if method == "ad_psgd":
        assert_exact(x.mean(0), begun[0].mean(0))


@pytest.mark.parametrize("method", PAIRS)
def test_only_the_baseline_never_looks_at_a_shadow(method: str) -> None:
    one, other = (on(pull, method, 4, 3, 2) for _ in range(2))
    acid_of(other).shadows.add_(1.0)
    assert torch.equal(state_of(train(one)).workers, state_of(train(other)).workers) == (method == "ad_psgd")


def test_acceleration_brings_a_long_ring_together_sooner() -> None:
    """From its slowest wave, which takes the baseline chi1 = 13 gradients, and the accelerated method their square root."""
    wave = torch.cos(2 * torch.pi * torch.arange(16, dtype=torch.float64) / 16)[:, None]
    left: dict[str, list[float]] = {method: [] for method in PAIRS}
    for method in PAIRS:
        for seed in range(3):
            run = on(nothing, method, 16, 40, 1, seed=seed)
            state = acid_of(run)
            state.workers[0] = state.shadows[0] = wave
            begun = distance(state.workers[0])
            train(run)
            left[method].append(distance(state.workers[0]) / begun)
    assert max(left["ad_psgd"]) < 0.5
    assert max(left["a2cid2"]) < min(left["ad_psgd"]) / 3


@pytest.mark.parametrize("rate", [0.5, 4.0])
def test_workers_meet_at_the_rate_asked_for(rate: float) -> None:
    plans = timed(make("a2cid2", 8, 50, 8 * 500 * 2, rate=rate))
    meetings = sum(int((plan.program.events.peer >= 0).sum()) for plan in plans if plan.program)
    expected = rate / 2 * 8 * 500  # half of a worker's meetings are its peer's too
    assert abs(meetings - expected) < 5 * expected**0.5
