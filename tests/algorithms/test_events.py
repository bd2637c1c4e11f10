"""Events of workers: their clocks, their order, budgets and the ledger."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fl_hydra.algorithms.events import EventDriven
from fl_hydra.algorithms.parameter_server import ServerState
from fl_hydra.decentralized.clocks import Events, Step
from fl_hydra.optim.schedules import Constant
from fl_hydra.optim.sgdm import SGDM
from fl_hydra.speeds.models import Equal, Linear, LogNormal, Stragglers
from fl_hydra.training.rows import Batch, Gradient, Rows
from fl_hydra.training.trainer import Trainer
from tests.support.workers import (
    EVENTS,
    GOSSIP,
    METHODS,
    PAIRS,
    SERVED,
    computing,
    drawn_events,
    gradients,
    make,
    nothing,
    on,
    override,
    shipped,
    timed,
    train,
)


@pytest.mark.parametrize("method", SERVED)
def test_workers_contribute_by_their_speed(method: str) -> None:
    speeds = Linear(spread=0.6)
    run = make(method, 5, 7, 5 * 100 * 2, speeds=speeds)
    timed(run)
    elapsed = run.member.seconds * speeds.throughput / 2 * speeds.draw(5, 0)
    assert (abs(gradients(run) - np.floor(elapsed + 1e-6)) <= 1).all()
    assert 100 - 1e-6 <= run.member.seconds * speeds.throughput / 2 <= 100 + 1 / 0.4


@pytest.mark.parametrize("method", PAIRS)
def test_workers_that_meet_contribute_by_their_speed_on_average(method: str) -> None:
    speeds = Linear(spread=0.6)
    run = make(method, 5, 40, 5 * 800 * 2, speeds=speeds)
    timed(run)
    elapsed = run.member.seconds * speeds.throughput / 2
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
            assert run.member.samples == samples
            seconds[method, speeds.name] = run.member.seconds
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
        seconds.append(run.member.seconds)
        assert row["seconds"] == seconds[-1]
    assert len(seconds) == 4
    assert seconds == sorted(set(seconds))


def test_a_distant_server_takes_time_and_changes_nothing_for_equal_workers() -> None:
    near, far = (train(make("async_sgd", 3, 2, 48, delay=delay)) for delay in (0.0, 1.5))
    assert torch.equal(near.state.model, far.state.model)
    steps = 48 / 2 / 3
    assert far.member.seconds - near.member.seconds == pytest.approx(steps / 2 * 1.5, rel=1e-9)


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
    algorithm = together.member.experiment.algorithm
    assert isinstance(algorithm, EventDriven)
    alone = served_one_at_a_time if method in SERVED else one_at_a_time
    override(single, schedule=alone)
    drawn = drawn_events(together)
    train(together)
    train(single)
    assert sum(len(algorithm.schedule(events)) for events in drawn) < sum(len(alone(events)) for events in drawn)
    for name, tensor in single.state.tensors().items():
        assert torch.equal(together.state.tensors()[name], tensor), name
    assert together.member.traffic == single.member.traffic


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
    assert second.member.round == 2
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
    descend = run.member.experiment.algorithm.step

    def step(rows: Rows, gradient: Gradient, batches: list[Batch], j: int) -> None:
        if run.member.samples == 4 * 4 * 8:
            counts.extend(batches[0].counts.tolist())
        descend(rows, gradient, batches, j)

    override(run, step=step)
    train(run)
    assert run.member.samples == run.member.computed == run.member.cursors.sum() == 147
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
    traffic = run.member.traffic
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
    traffic = run.member.traffic
    assert (traffic.messages, traffic.bytes_down) == (2 * meetings, 0)
    assert traffic.exchanges == traffic.averages == 0, "nobody waits"
    assert traffic.bytes_up == traffic.exchanged == 2 * meetings * run.group.layout.size * 8


@pytest.mark.parametrize("method", SERVED)
def test_a_worker_sends_a_model_and_gets_one_back_in_each_of_its_exchanges(method: str) -> None:
    run = on(nothing, method, 4, 3, 4, speeds=Linear())
    train(run)
    visits = int((gradients(run) // 3).sum())
    assert visits < 16, "some workers are on their way"
    traffic = run.member.traffic
    assert traffic.messages == traffic.served == 2 * visits
    assert traffic.bytes_up == traffic.bytes_down == visits * run.group.layout.size * 8
    assert isinstance(run.state, ServerState)
    assert run.state.updates.item() == visits


@pytest.mark.parametrize("method", [*GOSSIP, *PAIRS])
def test_one_worker_has_no_one_to_talk_to(method: str) -> None:
    run = train(make(method, 1, 4, 16))
    assert (run.member.traffic.messages, run.member.traffic.bytes_up, run.member.traffic.bytes_down) == (0, 0, 0)
