"""The constants of A2CiD2, lists of events, and their parallel schedules."""

from __future__ import annotations

import numpy as np
import pytest

from fl_hydra.arrays import Indices
from fl_hydra.decentralized.clocks import (
    Events,
    acid_constants,
    edge_rates,
    meeting_schedule,
    periodic_events,
    poisson_events,
    server_schedule,
)
from fl_hydra.decentralized.topologies import Floats, edges
from fl_hydra.errors import UserError
from tests.support.graphs import UNDIRECTED, admitted


@pytest.mark.parametrize(
    ("topology", "K", "chi1", "chi2", "eta", "alpha_tilde"),
    [
        ("ring", 4, 1.0, 3 / 4, 0.5774, 0.5774),
        ("ring", 8, 3.4142, 7 / 8, 0.2893, 0.9877),
        ("ring", 16, 13.1371, 15 / 16, 0.1425, 1.8717),
        ("ring", 64, 207.67, 63 / 64, 0.0350, 7.2624),
        ("exponential", 16, 2.0, 1.0097, 0.3519, 0.7037),
        ("complete", 16, 15 / 16, 15 / 16, 8 / 15, 0.5),
        ("star", 8, 7 / 4, 7 / 8, 0.4041, 0.5**0.5),
        ("ring", 2, 0.5, 0.5, 1.0, 0.5),
    ],
)
def test_acid_constants(topology: str, K: int, chi1: float, chi2: float, eta: float, alpha_tilde: float) -> None:
    constants = acid_constants(topology, K)
    found = (constants.chi1, constants.chi2, constants.eta, constants.alpha_tilde)
    assert found == pytest.approx((chi1, chi2, eta, alpha_tilde), rel=2e-5, abs=5e-5)
    twice = acid_constants(topology, K, rate=2.0)  # twice the meetings is half the time
    assert (twice.chi1, twice.chi2, twice.eta, twice.alpha_tilde) == pytest.approx((found[0] / 2, found[1] / 2, 2 * found[2], found[3]))


@pytest.mark.parametrize("topology", UNDIRECTED)
def test_edges_meet_as_often_as_workers_start_meetings(topology: str) -> None:
    for K in admitted(topology)[1:]:
        pairs, rates = np.array(edges(topology, K)), edge_rates(topology, K, rate=3.0)
        meetings = np.bincount(pairs.ravel(), np.repeat(rates, 2), minlength=K)
        assert meetings.sum() == pytest.approx(3.0 * K)
        assert topology == "star" or meetings == pytest.approx(3.0)
        # Sum over edges of rate times resistance is K - 1 (Foster), so the largest resistance is at least the mean one.
        constants = acid_constants(topology, K, rate=3.0)
        assert constants.chi2 >= (K - 1) / rates.sum() / 2 * (1 - 1e-9)
        assert constants.chi1 >= constants.chi2 * (1 - 1e-9)


def test_poisson_events_follow_their_rates() -> None:
    K, gradients = 6, 40_000
    speeds = np.array([0.5, 1.0, 1.0, 1.5, 2.0, 4.0])
    pairs, rates = edges("ring", K), np.array([0.25, 0.5, 1.0, 1.0, 2.0, 3.0])
    events = poisson_events(speeds, pairs, rates, gradients, seed=3)
    computed = events.peer < 0
    assert computed.sum() == gradients and computed[-1] and (np.diff(events.times) >= 0).all() and events.times[0] > 0
    end = events.times[-1]
    assert abs(end - gradients / 10) < 5 * gradients**0.5 / 10

    def close(counts: Indices, expected: Floats) -> bool:
        return bool((abs(counts - expected) < 5 * expected**0.5).all())

    assert close(np.bincount(events.worker[computed], minlength=K), speeds * end)
    met = np.stack([events.worker[~computed], events.peer[~computed]], 1)
    assert close(np.array([(met == pair).all(1).sum() for pair in pairs], np.int64), rates * end)
    # The gaps between gradients are exponential, and meetings come evenly in between.
    gaps = np.diff(events.times[computed])
    assert gaps.mean() == pytest.approx(0.1, rel=0.03) and gaps.std() == pytest.approx(gaps.mean(), rel=0.03)
    halves = np.histogram(events.times[~computed], 4, (0, end))[0]
    assert close(halves, np.full(4, rates.sum() * end / 4))


def test_poisson_events_are_a_function_of_seed_and_round() -> None:
    speeds, pairs = np.ones(8), edges("ring", 8)

    def block(seed: int, round: int, rate: float = 1.0) -> Events:
        return poisson_events(speeds, pairs, edge_rates("ring", 8, rate), 500, seed, round)

    def same(a: Events, b: Events) -> bool:
        return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ("times", "worker", "peer"))

    assert same(block(1, 2), block(1, 2)) and not same(block(1, 2), block(1, 3)) and not same(block(1, 2), block(2, 2))
    # The gradients are the same whatever the meetings.
    few, many, none = block(1, 2, 0.1), block(1, 2, 10.0), poisson_events(speeds, [], np.zeros(0), 500, 1, 2)
    assert len(few) < len(many) and len(none) == 500
    assert same(only_gradients(few), only_gradients(many)) and same(none, only_gradients(many))
    assert len(poisson_events(speeds, pairs, np.ones(8), 0, 1, 2)) == 0
    with pytest.raises(UserError, match=r"worker \[1\] has \[0\.0\]"):
        poisson_events(np.array([1.0, 0.0]), [], np.zeros(0), 5, 1)


@pytest.mark.parametrize("cycles", [[0.1] * 5, [0.1, 0.2, 0.3, 0.7], [1, 1 / 2, 1 / 3, 1 / 7], [0.83, 1.7, 0.31, 2.9], [0.1] + [5.0] * 20])
def test_periodic_blocks_join_to_one_list(cycles: list[float]) -> None:
    cycle, K = np.array(cycles), len(cycles)
    whole = periodic_events(cycle, np.zeros(K, np.int64), 1000)
    assert len(whole) == 1000 and (whole.peer == -1).all() and (np.diff(whole.times) >= 0).all()
    for k in range(K):
        own = whole.times[whole.worker == k]
        np.testing.assert_allclose(own, np.arange(1, len(own) + 1) * cycle[k], rtol=1e-9)
        assert (len(own) + 1) * cycle[k] > whole.times[-1] * (1 - 1e-9)  # none is missing
    done, blocks = np.zeros(K, np.int64), []
    for gradients in (1, 7, 0, 192, 300, 500):
        blocks.append(periodic_events(cycle, done, gradients))
        done += np.bincount(blocks[-1].worker, minlength=K)
    assert np.array_equal(np.concatenate([block.worker for block in blocks]), whole.worker)
    assert np.array_equal(np.concatenate([block.times for block in blocks]), whole.times)


def test_equal_times_go_by_worker_number() -> None:
    equal = periodic_events(np.full(6, 0.1), np.zeros(6, np.int64), 6000)
    assert np.array_equal(equal.worker, np.tile(np.arange(6), 1000))
    # 3 * 0.1 > 0.3 in floating point: both finish at once, and worker 0 goes first.
    thirds = periodic_events(np.array([0.1, 0.3]), np.zeros(2, np.int64), 4000)
    assert np.array_equal(thirds.worker, np.tile([0, 0, 0, 1], 1000))
    speeds = np.arange(1, 12)
    whole = periodic_events(1 / speeds, np.zeros(11, np.int64), int(speeds.sum()) * 50)
    exact = sorted((n * 27720 // speed, k) for k, speed in enumerate(speeds.tolist()) for n in range(1, speed * 50 + 1))
    assert whole.worker.tolist() == [k for _, k in exact]
    with pytest.raises(UserError, match="times as slow"):
        periodic_events(np.array([1.0, 1e7]), np.zeros(2, np.int64), 5)


def only_gradients(events: Events) -> Events:
    chosen = events.peer < 0
    return Events(events.times[chosen], events.worker[chosen], events.peer[chosen])


def scene(seed: int, K: int = 9, gradients: int = 300, rate: float = 1.0) -> Events:
    speeds = np.random.default_rng(seed).uniform(0.3, 3, K)
    return poisson_events(speeds, edges("exponential", K), edge_rates("exponential", K, rate), gradients, seed)


@pytest.mark.parametrize("rate", [0.2, 1.0, 8.0])
def test_meeting_schedule_is_the_events_one_by_one(rate: float) -> None:
    """Every event applies a random map of its own to its workers, so that any wrong order shows."""
    events = scene(5, rate=rate)
    draws = np.random.default_rng(0)
    maps = draws.normal(size=(len(events), 6, 6)) / 3
    start = draws.normal(size=(9, 3))

    def touched(position: int) -> list[int]:
        worker, peer = int(events.worker[position]), int(events.peer[position])
        return [worker] if peer < 0 else [worker, peer]

    def result(x: Floats, position: int) -> Floats:
        rows = touched(position)
        size = 3 * len(rows)
        return np.tanh(maps[position, :size, :size] @ x[rows].ravel()).reshape(-1, 3)

    one_by_one = start.copy()
    for position in range(len(events)):
        one_by_one[touched(position)] = result(one_by_one, position)

    schedule = meeting_schedule(events)
    together = start.copy()
    for step in schedule:
        rows = [row for position in step.positions for row in touched(position)]
        assert len(set(rows)) == len(rows) and (np.diff(step.positions) > 0).all()
        assert ((events.peer[step.positions] < 0) == (step.kind == "gradients")).all()
        results = [result(together, position) for position in step.positions]  # all from the same x
        for position, rows_after in zip(step.positions, results, strict=True):
            together[touched(position)] = rows_after
    assert np.array_equal(together, one_by_one)
    assert sorted(np.concatenate([step.positions for step in schedule])) == list(range(len(events)))

    # As few steps of gradients as the longest chain of events that wait for each other has.
    chain = np.zeros(9, np.int64)
    for position in range(len(events)):
        chain[touched(position)] = chain[touched(position)].max() + (events.peer[position] < 0)
    assert sum(step.kind == "gradients" for step in schedule) == chain.max()


def test_meeting_schedule_of_nothing_and_of_strangers() -> None:
    assert meeting_schedule(scene(1, gradients=0)) == [] == server_schedule(scene(1, gradients=0))
    alone = periodic_events(np.ones(4), np.zeros(4, np.int64), 12)
    assert [(step.kind, step.positions.tolist()) for step in meeting_schedule(alone)] == [
        ("gradients", [0, 1, 2, 3]),
        ("gradients", [4, 5, 6, 7]),
        ("gradients", [8, 9, 10, 11]),
    ]


@pytest.mark.parametrize("seed", range(3))
def test_server_schedule_is_the_events_one_by_one(seed: int) -> None:
    events = only_gradients(scene(seed))
    draws = np.random.default_rng(seed)
    maps = draws.normal(size=(len(events), 3, 3))
    start = draws.normal(size=3)

    server, copies = start.copy(), np.tile(start, (9, 1))
    for position, worker in enumerate(events.worker):
        server = 0.9 * server + np.tanh(maps[position] @ copies[worker])
        copies[worker] = server
    expected = server

    server, copies = start.copy(), np.tile(start, (9, 1))
    waiting: dict[int, Floats] = {}
    applied: list[int] = []
    schedule = server_schedule(events)
    for step in schedule:
        workers = events.worker[step.positions].tolist()
        if step.kind == "gradients":
            assert len(set(workers)) == len(workers) and not waiting  # no worker twice, nothing kept from step to step
            waiting.update((worker, np.tanh(maps[n] @ copies[worker])) for n, worker in zip(step.positions, workers, strict=True))
        else:
            for worker in workers:
                server = 0.9 * server + waiting.pop(worker)
                copies[worker] = server
            applied += step.positions.tolist()
    assert applied == list(range(len(events))) and not waiting
    assert np.array_equal(server, expected)
    # A worker's gradients can only be computed one by one: each step but the first is waited for by a worker who has just been applied.
    for step, following in zip(schedule[::2], schedule[2::2], strict=False):
        assert events.worker[following.positions[0]] in events.worker[step.positions]


def test_server_schedule_of_equal_workers_is_everybody_in_turn() -> None:
    schedule = server_schedule(periodic_events(np.ones(4), np.zeros(4, np.int64), 12))
    assert [step.positions.tolist() for step in schedule] == [part for n in (0, 4, 8) for part in [list(range(n, n + 4))] * 2]
    with pytest.raises(ValueError, match="meetings"):
        server_schedule(scene(0))
