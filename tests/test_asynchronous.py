"""Decentralized and asynchronous methods against the properties of their papers, in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import expm
from torch import Tensor

from fl_hydra.algorithms.a2cid2 import A2CiD2, AcidState
from fl_hydra.algorithms.events import EventDriven, Program, WorkersState
from fl_hydra.algorithms.gossip import GossipState
from fl_hydra.algorithms.parameter_server import EASGD, SHAT, AsyncSGD, ServerState
from fl_hydra.arrays import Indices
from fl_hydra.decentralized import topologies
from fl_hydra.decentralized.clocks import Events, Step, acid_constants
from fl_hydra.decentralized.topologies import TOPOLOGIES, mixing_matrix
from fl_hydra.local_steps.measured import Loss
from fl_hydra.optim.schedules import Constant
from fl_hydra.optim.sgdm import SGDM
from fl_hydra.speeds.base import Speeds
from fl_hydra.speeds.models import Equal, Linear, LogNormal, Stragglers
from fl_hydra.training.experiment import Experiment
from fl_hydra.training.fabric import Traffic
from fl_hydra.training.planning import RoundPlan, plan_round
from fl_hydra.training.rows import Batch, Gradient, Rows
from fl_hydra.training.trainer import Trainer
from tests.support.make import experiment

GOSSIP = ["gossip", "gossip_pga", "gossip_aga"]
PAIRS = ["a2cid2", "ad_psgd"]
SERVED = ["async_sgd", "staleness_aware", "easgd", "shat"]
EVENTS = PAIRS + SERVED
METHODS = GOSSIP + EVENTS

RATE = 0.1
"""Learning rate on quadratics."""

Field = Callable[[Tensor, Tensor], Tensor]
"""The gradients [n, P] of some workers, int64 [n], at their parameters [n, P]."""


def assert_exact(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0.0, atol=1e-12)


@cache
def shipped(method: str) -> Experiment:
    """A method as it is shipped, with a model of 83 parameters."""
    return experiment(f"algorithm={method}", "precision=fp64", "model.filters=1", "model.hidden=1")


def make(
    method: str, K: int, J: int, samples: int, *, batch_size: int = 2, engine: str = "loop", folder: Path | None = None, **parts: Any
) -> Trainer:
    """A trainer of that many samples; `parts` replace fields of the experiment or of its algorithm."""
    shape = shipped(method)
    hyper = {name: value for name, value in parts.items() if hasattr(shape.algorithm, name)}
    others = {name: value for name, value in parts.items() if name not in hyper}
    algorithm = replace(shape.algorithm, **hyper)
    algorithm.check(K, 1.0)
    whole = replace(shape, K=K, m=K, J=J, budget=samples, batch_size=batch_size, algorithm=algorithm, **others)
    return Trainer(whole, engine=engine, device="cpu", client_folders=[folder] if folder else None)


def train(run: Trainer) -> Trainer:
    while not run.finished:
        run.run_round()
    return run


def timed(run: Trainer) -> list[RoundPlan]:
    """Only the clock of a run: its plans, without the gradients."""
    plans = []
    while not run.finished:
        plans.append(plan_round(run.sole_run))
        run.sole_run.begin(plans[-1], 0)
        run.sole_run.advance(plans[-1], 0, 0)
    return plans


def override(run: Trainer, **seams: Callable[..., Any]) -> None:
    """Replace seams of its algorithm."""
    for name, function in seams.items():
        setattr(run.sole_run.experiment.algorithm, name, function)


def computing(run: Trainer) -> Callable[[], Indices]:
    """Says, from within a local step, of which workers it is."""
    algorithm = run.sole_run.experiment.algorithm
    workers = [np.arange(run.sole_run.experiment.K)]
    if isinstance(algorithm, EventDriven):
        before = algorithm.before

        def note(state: WorkersState, run: int, program: Program, positions: Indices) -> None:
            workers[0] = program.events.worker[positions]
            before(state, run, program, positions)

        override(run, before=note)
    return lambda: workers[0]


def replace_gradient(run: Trainer, field: Field) -> None:
    """Train on `field` in place of the gradients of the images."""
    workers = computing(run)

    def step(rows: Rows, gradient: Gradient, batches: list[Batch], j: int) -> None:
        rows.descend(field(rows.parameters, torch.from_numpy(workers())), j)

    override(run, step=step)


def pull(parameters: Tensor, workers: Tensor) -> Tensor:
    """The gradients of f_k(x) = (1 + k) / 8 |x - k|^2."""
    k = workers[:, None].double()
    return (1 + k) / 4 * (parameters - k)


def nothing(parameters: Tensor, workers: Tensor) -> Tensor:
    return torch.zeros_like(parameters)


def on(field: Field, method: str, K: int, J: int, rounds: int, *, momentum: float = 0.0, **parts: Any) -> Trainer:
    """A trainer whose workers follow `field` at a constant rate; a batch is one sample, so a whole round is K J of them."""
    optimizer = SGDM(lr=RATE, momentum=momentum, weight_decay=0.0)
    run = make(method, K, J, K * J * rounds, batch_size=1, optimizer=optimizer, scheduler=Constant(), **parts)
    replace_gradient(run, field)
    return run


def state_of(run: Trainer) -> WorkersState | GossipState:
    assert isinstance(run.state, WorkersState | GossipState)
    return run.state


def acid_of(run: Trainer) -> AcidState:
    assert isinstance(run.state, AcidState)
    return run.state


def disagree(run: Trainer) -> Tensor:
    """Give every worker a random model; the [K, P] of them, which the run goes on with."""
    models = state_of(run).workers[0]
    return models.copy_(torch.randn(models.shape, generator=torch.Generator().manual_seed(1), dtype=models.dtype))


def distance(models: Tensor) -> float:
    """From consensus."""
    return float((models - models.mean(0)).norm())


def drawn_events(run: Trainer) -> list[Events]:
    """The events of each of its rounds, as they come."""
    algorithm = run.sole_run.experiment.algorithm
    assert isinstance(algorithm, EventDriven)
    drawn, draw = [], algorithm.events

    def note(*arguments: Any) -> Events:
        drawn.append(draw(*arguments))
        return drawn[-1]

    override(run, events=note)
    return drawn


# Gossip


def test_gossip_pga_without_edges_is_local_sgd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topologies, "mixing_matrix", lambda topology, K, exchange=0: np.eye(K))
    gossip, local = (train(make(method, 4, 3, 150, batch_size=4)) for method in ("gossip_pga", "localsgd"))
    assert gossip.sole_run.round == 4, "the last round is cut"
    assert_exact(gossip.state.model, local.state.model)


def test_gossip_pga_among_everyone_is_minibatch_sgd() -> None:
    gossip = train(make("gossip_pga", 4, 3, 144, batch_size=4, topology="complete"))
    minibatch = train(make("localsgd", 4, 1, 144, batch_size=4))
    assert_exact(gossip.state.model, minibatch.state.model)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_gossip_pga_with_period_one_is_minibatch_sgd(topology: str) -> None:
    gossip = train(make("gossip_pga", 4, 1, 90, batch_size=4, topology=topology))
    minibatch = train(make("localsgd", 4, 1, 90, batch_size=4))
    assert_exact(gossip.state.model, minibatch.state.model)
    assert gossip.sole_run.traffic == minibatch.sole_run.traffic


@pytest.mark.parametrize("topology", ["ring", "one_peer_exponential"])
def test_gossip_pga_that_never_averages_is_gossip_for_every_worker(topology: str) -> None:
    """Every worker comes to every step of one long period with the model that it has there in short rounds without averages."""
    seen: dict[str, list[Tensor]] = {"gossip_pga": [], "gossip": []}
    for method, J in (("gossip_pga", 8), ("gossip", 2)):
        run = make(method, 5, J, 160, batch_size=4, topology=topology)
        descend = run.sole_run.experiment.algorithm.step

        def step(rows: Rows, *rest: Any, method: str = method, descend: Callable[..., None] = descend) -> None:
            seen[method].append(rows.parameters.clone())
            descend(rows, *rest)

        override(run, step=step)
        train(run)
    assert len(seen["gossip"]) == 8
    for one, other in zip(seen["gossip_pga"], seen["gossip"], strict=True):
        assert_exact(one, other)
    assert distance(seen["gossip"][-1]) > 1e-3


def test_the_rounds_of_gossip_are_for_evaluation_only() -> None:
    short, long = (train(make("gossip", 5, J, 160, batch_size=4, topology="one_peer_exponential")) for J in (1, 8))
    assert_exact(short.state.model, long.state.model)
    assert_exact(state_of(short).workers, state_of(long).workers)
    assert (short.sole_run.round, long.sole_run.round) == (8, 1)


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("method", ["gossip", "gossip_pga"])
def test_gossip_by_hand(method: str, topology: str) -> None:
    """x_k <- sum_l W_kl (x_l - lr g_l); with Gossip-PGA the mean of all in every J-th step, from which they start again."""
    K, J = 8, 2
    run = on(pull, method, K, J, 4, topology=topology)
    x = run.state.model.repeat(K, 1)
    for t in range(4 * J):
        last = (t + 1) % J == 0
        W = np.full((K, K), 1 / K) if last and method == "gossip_pga" else mixing_matrix(topology, K, t)
        x = torch.from_numpy(W.copy()) @ (x - RATE * pull(x, torch.arange(K)))
        if last:
            run.run_round()
            assert_exact(run.state.model[0], x.mean(0))
            if method == "gossip":
                assert_exact(state_of(run).workers[0], x)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_mean_of_the_workers_takes_the_step_of_the_mean_gradient(topology: str) -> None:
    run = on(pull, "gossip", 6, 1, 3, topology=topology)
    x = disagree(run)
    while not run.finished:
        expected = x.mean(0) - RATE * pull(x, torch.arange(6)).mean(0)
        run.run_round()
        assert_exact(x.mean(0), expected)
        assert_exact(run.state.model[0], expected)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_exchanges_keep_the_mean_and_bring_workers_together(topology: str) -> None:
    """Each by the second singular value of W at least, the first being that of the mean."""
    run = on(nothing, "gossip", 8, 1, 6, topology=topology)
    x = disagree(run)
    mean, begun = x.mean(0), distance(x)
    for t in range(6):
        contraction = np.linalg.svd(mixing_matrix(topology, 8, t) - 1 / 8, compute_uv=False)[0]
        before = distance(x)
        run.run_round()
        assert distance(x) <= contraction * before + 1e-12
        assert_exact(x.mean(0), mean)
    assert distance(x) < 0.7 * begun


def test_slowest_wave_of_a_ring_contracts_by_its_eigenvalue() -> None:
    run = on(nothing, "gossip", 8, 1, 3)
    x = state_of(run).workers[0]
    x.copy_(torch.cos(2 * torch.pi * torch.arange(8, dtype=torch.float64) / 8)[:, None].expand_as(x))
    for _ in range(3):
        expected = (1 + 2 * np.cos(2 * np.pi / 8)) / 3 * x
        run.run_round()
        assert_exact(x, expected)


@pytest.mark.parametrize(("topology", "steps"), [("complete", 1), ("one_peer_exponential", 3)])
def test_consensus_of_eight_workers_is_exact_after(topology: str, steps: int) -> None:
    run = on(nothing, "gossip", 8, 1, steps, topology=topology)
    x = disagree(run)
    for _ in range(steps):
        assert distance(x) > 1
        run.run_round()
    assert distance(x) < 1e-12


def test_gossip_aga_is_gossip_pga_whose_period_follows_the_loss() -> None:
    """H <- ceil(F_init / F H_init), after F_init has been averaged over the warm-up; the budget is spent exactly."""
    assert shipped("gossip_aga") == experiment(
        "algorithm=gossip_pga", "local_steps=loss", "precision=fp64", "model.filters=1", "model.hidden=1"
    )
    run = make("gossip_aga", 2, 16, 400, local_steps=Loss(start=3, warmup=0.07))
    # 12 samples, 3 %, then 24, 6 %, are in the warm-up: F_init = 4, then (4 + 2) / 2 = 3. ceil(3 / F * 3) is 5, 9, 18 and 2.
    losses = [4.0, 2.0, 2.0, 1.0, 0.5] + [6.0] * 100
    periods = []

    def step(rows: Rows, gradient: Gradient, batches: list[Batch], j: int) -> None:
        counts = torch.from_numpy(batches[0].counts)
        batches[0].meter[:, 0] += losses[run.sole_run.round] * counts
        batches[0].meter[:, 2] += counts

    override(run, step=step)
    while not run.finished:
        before = run.sole_run.samples
        run.run_round()
        periods.append((run.sole_run.samples - before) / 4)
        assert run.finished or periods[-1] == run.sole_run.J
    assert periods == [3, 3, 3, 5, 9, 16] + [2] * 30 + [1]
    assert run.sole_run.samples == 400
    steps, rounds = 100, len(periods)
    assert run.sole_run.traffic.averages == rounds
    assert run.sole_run.traffic.exchanges == steps - rounds, "in a ring of two each sends one message"


# A2CiD2 and AD-PSGD


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


# A parameter server


@pytest.mark.parametrize("method", [method for method in METHODS if method != "easgd"])
def test_one_worker_is_sgd(method: str) -> None:
    """With momentum, weight decay, a schedule, rounds of several steps, and a last batch that is cut."""
    alone, sgd = (train(make(name, 1, 4, 91, batch_size=8)) for name in (method, "localsgd"))
    assert_exact(alone.state.model, sgd.state.model)


def test_one_worker_is_sgd_whenever_the_budget_ends() -> None:
    """The server has not heard of its last two steps then."""
    alone, sgd = (train(make(method, 1, 4, 107, batch_size=8)) for method in ("async_sgd", "localsgd"))
    assert gradients(alone).tolist() == [13], "and a part of another"
    assert_exact(state_of(alone).workers[0], sgd.state.model)


def test_easgd_with_one_worker_that_goes_halfway_is_lookahead() -> None:
    """With a = 1/2 both come to the middle: the slow weights have gone half of the way, and the fast ones start again from there."""
    elastic, lookahead = make("easgd", 1, 4, 96, batch_size=8, elasticity=0.5), make("lookahead", 1, 4, 96, batch_size=8)
    assert lookahead.sole_run.experiment.server.lr == 0.5
    while not elastic.finished:
        elastic.run_round()
        lookahead.run_round()
        assert_exact(elastic.state.model, lookahead.state.model)
        assert_exact(state_of(elastic).workers[0], lookahead.state.model)


@pytest.mark.parametrize(("method", "power"), [("async_sgd", 0.0), ("staleness_aware", 1.0), ("async_sgd", 0.5)])
def test_equal_workers_are_sgd_in_turns_each_late_by_the_others(method: str, power: float) -> None:
    """x <- x - lr g_k(x of K - 1 updates ago) / (1 + staleness)^power; in its first turn worker k is only k updates late."""
    K = 4
    run = on(pull, method, K, 1, 5)
    algorithm = run.sole_run.experiment.algorithm
    assert isinstance(algorithm, AsyncSGD)
    assert algorithm.power == (1.0 if method == "staleness_aware" else 0.0)
    algorithm.power = power
    staleness: list[float] = []
    exchange = algorithm.exchange

    def note(server: Tensor, worker: Tensor, fetched: Tensor, late: Tensor, K: int) -> None:
        staleness.append(float(late))
        exchange(server, worker, fetched, late, K)

    override(run, exchange=note)
    x = [run.state.model[0].clone()]
    for t in range(5 * K):
        k = t % K
        late = min(t, K - 1)
        x.append(x[t] - RATE * pull(x[t - late][None], torch.tensor([k]))[0] / (1 + late) ** power)
        if k == K - 1:
            run.run_round()
            assert_exact(run.state.model[0], x[-1])
            assert_exact(state_of(run).workers[0], torch.stack(x[-K:]))
    assert staleness == [0, 1, 2, 3] + [3] * 16


Exchange = Callable[[Tensor, Tensor, Tensor, int, int], tuple[Tensor, Tensor]]

PAPERS: dict[str, Exchange] = {
    "async_sgd": lambda x, y, fetched, s, K: (x + y - fetched, x + y - fetched),
    "staleness_aware": lambda x, y, fetched, s, K: (x + (y - fetched) / (1 + s), x + (y - fetched) / (1 + s)),
    "easgd": lambda x, y, fetched, s, K: (x + 0.9 / K * (y - x), y - 0.9 / K * (y - x)),
    "shat": lambda x, y, fetched, s, K: (x + (y - x) / (1 + s), y + (x + (y - x) / (1 + s) - y) * s / (1 + s)),
}
"""What an exchange makes of the server's x and the worker's y, s updates after it `fetched` a model."""


@pytest.mark.parametrize("J", [1, 3])
@pytest.mark.parametrize("speeds", [Equal(), Linear(spread=0.6), Stragglers(speed=0.3)], ids=lambda speeds: speeds.name)
@pytest.mark.parametrize("method", SERVED)
def test_parameter_server_by_hand(method: str, speeds: Speeds, J: int) -> None:
    """One event after the other; a worker's turn is not over where a round is."""
    K = 4
    run = on(pull, method, K, J, 6, speeds=speeds)
    drawn = drawn_events(run)
    x = run.state.model[0].clone()
    train(run)
    y, fetched, steps, seen, updates = [x] * K, [x] * K, [0] * K, [0] * K, 0
    for k in np.concatenate([events.worker for events in drawn]).tolist():
        y[k] = y[k] - RATE * pull(y[k][None], torch.tensor([k]))[0]
        steps[k] += 1
        if steps[k] % J == 0:
            x, y[k] = PAPERS[method](x, y[k], fetched[k], updates - seen[k], K)
            fetched[k] = y[k]
            updates += 1
            seen[k] = updates
    assert min(steps) >= J
    assert_exact(run.state.model[0], x)
    assert_exact(state_of(run).workers[0], torch.stack(y))


def exchanged(
    algorithm: AsyncSGD | EASGD | SHAT, server: float, worker: float, staleness: int, fetched: float = 0.0
) -> tuple[float, float]:
    """An exchange of one of two workers, in one dimension."""
    x, y, z, s = (torch.tensor([value], dtype=torch.float64) for value in (server, worker, fetched, staleness))
    algorithm.exchange(x, y, z, s, 2)
    return float(x), float(y)


def test_two_elastic_exchanges() -> None:
    """a = 0.8 / 2. What the server gains the worker loses."""
    server, first = exchanged(EASGD(elasticity=0.8), 0.0, 1.0, 0)
    assert (server, first) == pytest.approx((0.4, 0.6), abs=1e-15)
    server, second = exchanged(EASGD(elasticity=0.8), server, 2.0, 1)
    assert (server, second) == pytest.approx((1.04, 1.36), abs=1e-15)
    assert server + first + second == pytest.approx(0.0 + 1.0 + 2.0, abs=1e-15)


def test_elastic_exchanges_keep_the_sum_of_the_server_and_all_workers() -> None:
    run = on(nothing, "easgd", 4, 1, 10, speeds=Linear())
    x = disagree(run)
    server, begun = run.state.model[0].clone(), torch.cat([x, run.state.model]).sum(0)
    apart = distance(x)
    train(run)
    assert_exact(torch.cat([x, run.state.model]).sum(0), begun)
    assert distance(x) < 0.2 * apart
    assert not torch.allclose(run.state.model[0], server)


def test_shat_weighs_a_worker_by_what_happened_since_its_last_visit() -> None:
    assert exchanged(SHAT(), 0.0, 1.0, 0) == (1.0, 1.0), "alone, the server takes over its model"
    assert exchanged(SHAT(), 0.0, 1.0, 1) == (0.5, 0.75)
    assert exchanged(SHAT(), 0.0, 1.0, 3) == (0.25, 1 - 0.75 * 0.75), "the server counts it for a quarter, and it comes closer"


def test_staleness_divides_what_a_worker_has_learnt() -> None:
    for power, server in ((0.0, 6.0), (0.5, 5.0), (1.0, 4.5)):
        assert exchanged(AsyncSGD(power=power), 4.0, 3.0, 3, fetched=1.0) == (server, server)


# Clocks


def gradients(run: Trainer) -> Indices:
    """Of each worker so far, int64 [K]."""
    counts: Indices = run.sole_run.cursors // run.sole_run.experiment.batch_size
    return counts


@pytest.mark.parametrize("method", SERVED)
def test_workers_contribute_by_their_speed(method: str) -> None:
    speeds = Linear(spread=0.6)
    run = make(method, 5, 7, 5 * 100 * 2, speeds=speeds)
    timed(run)
    elapsed = run.sole_run.seconds * speeds.throughput / 2 * speeds.draw(5, 0)
    assert (abs(gradients(run) - np.floor(elapsed + 1e-6)) <= 1).all()
    assert 100 - 1e-6 <= run.sole_run.seconds * speeds.throughput / 2 <= 100 + 1 / 0.4


@pytest.mark.parametrize("method", PAIRS)
def test_workers_that_meet_contribute_by_their_speed_on_average(method: str) -> None:
    speeds = Linear(spread=0.6)
    run = make(method, 5, 40, 5 * 800 * 2, speeds=speeds)
    timed(run)
    elapsed = run.sole_run.seconds * speeds.throughput / 2
    expected = elapsed * speeds.draw(5, 0)
    assert (abs(gradients(run) - expected) < 5 * expected**0.5).all()
    assert abs(elapsed - 800) < 5 * 4000**0.5 / 5


def test_a_straggler_holds_up_those_who_wait_for_it() -> None:
    """One of four workers has a fifth of the speed: waiting for it takes five times as long, not waiting 4 / 3.2 times."""
    seconds = {}
    samples = 4 * 160 * 2
    for method in ("localsgd", "gossip", "gossip_pga", "async_sgd", "easgd"):
        for speeds in (Equal(), Stragglers(fraction=0.25, speed=0.2)):
            run = make(method, 4, 8, samples, speeds=speeds)
            timed(run)
            assert run.sole_run.samples == samples
            seconds[method, speeds.name] = run.sole_run.seconds
        everyone = samples / 4 / 6400.0
        assert seconds[method, "equal"] == pytest.approx(everyone, rel=1e-9)
        slower = 4 / 3.2 if method in SERVED else 5
        assert seconds[method, "stragglers"] == pytest.approx(slower * everyone, rel=0.01)


def test_seconds_are_among_the_metrics_and_grow() -> None:
    run = make("async_sgd", 4, 2, 64, speeds=Linear())
    seconds = []
    while not run.finished:
        run.run_round()
        (row,) = run.evaluate()
        seconds.append(run.sole_run.seconds)
        assert row["seconds"] == seconds[-1]
    assert len(seconds) == 4
    assert seconds == sorted(set(seconds))


def test_a_distant_server_takes_time_and_changes_nothing_for_equal_workers() -> None:
    near, far = (train(make("async_sgd", 3, 2, 48, delay=delay)) for delay in (0.0, 1.5))
    assert torch.equal(near.state.model, far.state.model)
    steps = 48 / 2 / 3
    assert far.sole_run.seconds - near.sole_run.seconds == pytest.approx(steps / 2 * 1.5, rel=1e-9)


def test_where_sending_takes_long_speeds_hardly_matter() -> None:
    run = make("async_sgd", 5, 1, 5 * 100 * 2, speeds=Linear(spread=0.6), delay=1.0)
    timed(run)
    assert gradients(run).tolist() == pytest.approx([100] * 5, abs=1)


# The list of events


def one_at_a_time(events: Events) -> list[Step]:
    return [Step("gradients" if peer < 0 else "meetings", np.array([n])) for n, peer in enumerate(events.peer)]


def served_one_at_a_time(events: Events) -> list[Step]:
    return [step for n in range(len(events)) for step in (Step("gradients", np.array([n])), Step("apply", np.array([n])))]


@pytest.mark.parametrize("method", EVENTS)
def test_events_together_are_events_one_after_the_other(method: str) -> None:
    """On images, with momentum, and down to the last bit."""
    together, single = (make(method, 5, 4, 170, batch_size=4, speeds=LogNormal()) for _ in range(2))
    algorithm = together.sole_run.experiment.algorithm
    assert isinstance(algorithm, EventDriven)
    alone = served_one_at_a_time if method in SERVED else one_at_a_time
    override(single, schedule=alone)
    drawn = drawn_events(together)
    train(together)
    train(single)
    assert sum(len(algorithm.schedule(events)) for events in drawn) < sum(len(alone(events)) for events in drawn)
    for name, tensor in single.state.tensors().items():
        assert torch.equal(together.state.tensors()[name], tensor), name
    assert together.sole_run.traffic == single.sole_run.traffic


def same_events(one: list[Events], other: list[Events]) -> bool:
    pairs = zip(one, other, strict=True)
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for a, b in pairs for name in ("times", "worker", "peer"))


def test_events_follow_the_seed_and_the_speeds_and_nothing_else() -> None:
    def events(method: str = "a2cid2", **parts: Any) -> list[Events]:
        plans = timed(make(method, 4, 5, 120, speeds=LogNormal(), **parts))
        return [plan.program.events for plan in plans if plan.program]

    one, two, _ = events()
    assert not np.array_equal(one.worker, two.worker), "every block is drawn anew"
    assert one.times[-1] < two.times[0], "and goes on where the last one ended"
    assert same_events(events(), events(optimizer=SGDM(lr=1.0), scheduler=Constant()))
    assert same_events(events(), events("ad_psgd"))
    assert not same_events(events(), events(seed=1))
    assert same_events(events("easgd"), events("shat"))
    assert not same_events(events("easgd"), events("shat", seed=1)), "the speeds are drawn"


@pytest.mark.parametrize("method", EVENTS)
def test_nth_gradient_of_all_has_the_rate_of_the_nth_step_of_one(method: str) -> None:
    """Schedules go by the samples that all have processed, whoever is next."""
    scheduler = replace(shipped(method).scheduler, warmup=0.2)
    plans = timed(make(method, 4, 5, 115, scheduler=scheduler, speeds=Linear()))
    one = timed(make("localsgd", 1, 7, 115, scheduler=scheduler))
    rates = []
    for plan in plans:
        assert plan.program is not None
        events = plan.program.events
        ticks = events.peer < 0
        rates += plan.rates[events.worker[ticks], plan.program.nth[ticks]].tolist()
        part = 1 / 2 if plan is plans[-1] else 1.0  # of 115 samples, in batches of 2
        assert plan.last_rate * part == rates[-1]
    assert rates == [rate for plan in one for rate in plan.rates[0]]


@pytest.mark.parametrize("J", [3, 20])
@pytest.mark.parametrize("method", ["gossip", "a2cid2", "async_sgd"])
def test_every_worker_has_the_batches_that_it_has_in_local_sgd(method: str, J: int) -> None:
    """Its n-th batch is the same images with the same crops, however fast it is, and whether or not they are all augmented at once."""

    def batches(method: str) -> dict[tuple[int, int], Tensor]:
        run = make(method, 4, J, 4 * J * 8 * 2, batch_size=8, speeds=Linear(), engine="stacked")
        seen: dict[tuple[int, int], Tensor] = {}
        count = [0] * 4
        workers = computing(run)

        def step(rows: Rows, gradient: Gradient, batches: list[Batch], j: int) -> None:
            for k, inputs, targets in zip(workers().tolist(), batches[0].inputs, batches[0].targets, strict=True):
                seen[k, count[k]] = torch.cat([inputs.flatten(), targets])
                count[k] += 1

        override(run, step=step)
        train(run)
        return seen

    found, expected = batches(method), batches("localsgd")
    assert len(found) == 8 * J
    common = found.keys() & expected.keys()
    assert len(common) > 5 * J
    for key in common:
        assert torch.equal(found[key], expected[key]), key


@pytest.mark.parametrize("method", METHODS)
def test_a_run_goes_on_from_its_checkpoint_bitwise(method: str, tmp_path: Path) -> None:
    def begin() -> Trainer:
        return make(method, 4, 4, 170, batch_size=4, speeds=LogNormal(), folder=tmp_path)

    whole, first, second = begin(), begin(), begin()
    first.run_round()
    first.run_round()
    second.restore(first.checkpoint())
    assert second.sole_run.round == 2
    train(second)
    train(whole)
    for name, tensor in whole.state.tensors().items():
        assert torch.equal(second.state.tensors()[name], tensor), name
    assert second.evaluate() == whole.evaluate()


# Budgets and the ledger


@pytest.mark.parametrize("method", METHODS)
def test_budget_is_spent_exactly_and_only_the_last_gradients_are_cut(method: str) -> None:
    run = make(method, 4, 4, 147, batch_size=8, speeds=Linear())
    counts: list[int] = []
    descend = run.sole_run.experiment.algorithm.step

    def step(rows: Rows, gradient: Gradient, batches: list[Batch], j: int) -> None:
        if run.sole_run.samples == 4 * 4 * 8:
            counts.extend(batches[0].counts.tolist())
        descend(rows, gradient, batches, j)

    override(run, step=step)
    train(run)
    assert run.sole_run.samples == run.sole_run.computed == run.sole_run.cursors.sum() == 147
    assert run.measurements.meter[0, 2] == 147
    if method in EVENTS:
        assert sorted(counts) == [3, 8, 8], "a round is 128 samples; 19 are left"
    else:
        assert counts == [5, 5, 5, 4]
    assert run.state.model.isfinite().all()


@pytest.mark.parametrize("method", METHODS)
def test_budget_is_that_of_local_sgd(method: str) -> None:
    assert shipped(method).budget == shipped("localsgd").budget
    if method != "gossip_aga":
        assert replace(shipped(method), K=8, m=8, J=16).round_samples == 8 * 16 * 64


@pytest.mark.parametrize(
    ("topology", "K", "messages", "in_a_row"),
    [
        ("ring", 6, 12, 2),
        ("complete", 5, 20, 4),
        ("star", 5, 8, 4),
        ("torus", 6, 18, 3),
        ("exponential", 8, 40, 5),
        ("one_peer_exponential", 6, 6, 1),
    ],
)
@pytest.mark.parametrize("method", ["gossip", "gossip_pga"])
def test_gossip_sends_a_model_along_every_edge_in_every_step(method: str, topology: str, K: int, messages: int, in_a_row: int) -> None:
    run = on(nothing, method, K, 4, 3, topology=topology)
    train(run)
    payload = run.group.layout.size * 8
    averages = 3 if method == "gossip_pga" else 0
    exchanges = 12 - averages
    traffic = run.sole_run.traffic
    assert traffic.messages == exchanges * messages + averages * 2 * K
    assert traffic.bytes_up == (exchanges * messages + averages * K) * payload
    assert traffic.bytes_down == averages * K * payload
    assert (traffic.steps, traffic.averages, traffic.exchanges) == (12, averages, exchanges * in_a_row)
    assert traffic.exchanged == exchanges * messages * payload


@pytest.mark.parametrize("method", PAIRS)
def test_two_models_are_sent_in_a_meeting(method: str) -> None:
    run = on(nothing, method, 5, 4, 2)
    drawn = drawn_events(run)
    train(run)
    meetings = sum(int((events.peer >= 0).sum()) for events in drawn)
    assert meetings > 0
    traffic = run.sole_run.traffic
    assert (traffic.messages, traffic.bytes_down) == (2 * meetings, 0)
    assert traffic.exchanges == traffic.averages == 0, "nobody waits"
    assert traffic.bytes_up == traffic.exchanged == 2 * meetings * run.group.layout.size * 8


@pytest.mark.parametrize("method", SERVED)
def test_a_worker_sends_a_model_and_gets_one_back_in_each_of_its_exchanges(method: str) -> None:
    run = on(nothing, method, 4, 3, 4, speeds=Linear())
    train(run)
    visits = int((gradients(run) // 3).sum())
    assert visits < 16, "some workers are on their way"
    traffic = run.sole_run.traffic
    assert traffic.messages == traffic.served == 2 * visits
    assert traffic.bytes_up == traffic.bytes_down == visits * run.group.layout.size * 8
    assert isinstance(run.state, ServerState)
    assert run.state.updates.item() == visits


@pytest.mark.parametrize("method", [*GOSSIP, *PAIRS])
def test_one_worker_has_no_one_to_talk_to(method: str) -> None:
    run = train(make(method, 1, 4, 16))
    assert (run.sole_run.traffic.messages, run.sole_run.traffic.bytes_up, run.sole_run.traffic.bytes_down) == (0, 0, 0)
