"""A parameter server whose workers do not wait for each other."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from fl_hydra.algorithms.parameter_server import EASGD, SHAT, AsyncSGD
from fl_hydra.speeds.base import Speeds
from fl_hydra.speeds.models import Equal, Linear, Stragglers
from tests.support.exact import assert_exact
from tests.support.workers import (
    METHODS,
    RATE,
    SERVED,
    disagree,
    distance,
    drawn_events,
    gradients,
    make,
    nothing,
    on,
    override,
    pull,
    state_of,
    train,
)


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
    assert lookahead.member.experiment.server.lr == 0.5
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
    algorithm = run.member.experiment.algorithm
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
