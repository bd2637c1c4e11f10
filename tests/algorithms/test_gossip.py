"""Gossip, Gossip-PGA and Gossip-AGA."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fl_hydra.decentralized import topologies
from fl_hydra.decentralized.topologies import TOPOLOGIES, mixing_matrix
from fl_hydra.local_steps.measured import Loss
from fl_hydra.training.rows import Batch, Gradient, Rows
from tests.support.exact import assert_exact
from tests.support.make import experiment
from tests.support.workers import RATE, disagree, distance, make, nothing, on, override, pull, shipped, state_of, train


def test_gossip_pga_without_edges_is_local_sgd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topologies, "mixing_matrix", lambda topology, K, exchange=0: np.eye(K))
    gossip, local = (train(make(method, 4, 3, 150, batch_size=4)) for method in ("gossip_pga", "localsgd"))
    assert gossip.member.round == 4, "the last round is cut"
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
    assert gossip.member.traffic == minibatch.member.traffic


@pytest.mark.parametrize("topology", ["ring", "one_peer_exponential"])
def test_gossip_pga_that_never_averages_is_gossip_for_every_worker(topology: str) -> None:
    """Every worker comes to every step of one long period with the model that it has there in short rounds without averages."""
    seen: dict[str, list[Tensor]] = {"gossip_pga": [], "gossip": []}
    for method, J in (("gossip_pga", 8), ("gossip", 2)):
        run = make(method, 5, J, 160, batch_size=4, topology=topology)
        descend = run.member.experiment.algorithm.step

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
    assert (short.member.round, long.member.round) == (8, 1)


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
        batches[0].meter[:, 0] += losses[run.member.round] * counts
        batches[0].meter[:, 2] += counts

    override(run, step=step)
    while not run.finished:
        before = run.member.samples
        run.run_round()
        periods.append((run.member.samples - before) / 4)
        assert run.finished or periods[-1] == run.member.J
    assert periods == [3, 3, 3, 5, 9, 16] + [2] * 30 + [1]
    assert run.member.samples == 400
    steps, rounds = 100, len(periods)
    assert run.member.traffic.averages == rounds
    assert run.member.traffic.exchanges == steps - rounds, "in a ring of two each sends one message"
