"""Speeds of workers, and the simulated clock."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fl_hydra.speeds import models as speeds
from fl_hydra.speeds.base import speed_models
from tests.support.small import HETEROGENEOUS, finish, on_quadratics, trained


@pytest.mark.parametrize("overrides", ["localsgd J=4", "localsgd J=32", "slowmo J=8", "hierarchical J=4", "post_local J=16"])
def test_equal_workers_take_the_time_of_their_own_samples(overrides: str) -> None:
    run, _ = on_quadratics(
        *f"algorithm={overrides} K=4 samples=4096 speeds.throughput=1000".split(), a=torch.ones(4, 1, dtype=torch.float64)
    )
    finish(run)
    assert run.sole_run.seconds == pytest.approx(4096 / 4 / 1000)
    assert run.evaluate()[0]["seconds"] == run.sole_run.seconds


def test_the_slowest_worker_decides() -> None:
    common = ("algorithm=localsgd", "K=3", "J=4", "rounds=5", "speeds=linear", "speeds.throughput=1000")
    run, _ = on_quadratics(*common, "speeds.spread=0.5", a=torch.ones(3, 1))
    assert finish(run).sole_run.seconds == pytest.approx(5 * 4 * 4 / 1000 / 0.5)
    # Work in proportion to speed ends at the same time for everyone.
    balanced, _ = on_quadratics(*common, "speeds.spread=0.5", "local_steps.spread=0.5", a=torch.ones(3, 1))
    assert finish(balanced).sole_run.seconds == pytest.approx(5 * 4 * 4 / 1000)
    assert balanced.sole_run.samples == run.sole_run.samples


@pytest.mark.parametrize("topology", ["ring", "one_peer_exponential"])
@pytest.mark.parametrize("method", ["gossip", "gossip_pga"])
def test_workers_wait_at_every_exchange(method: str, topology: str) -> None:
    """Two workers of speeds 1/2 and 3/2 that take 4 and 12 steps: four steps wait for the slow one, eight are the fast one's alone."""
    run, _ = on_quadratics(
        *(f"algorithm={method}", f"algorithm.topology={topology}", "K=2", "J=8", "rounds=10", "speeds.throughput=4"),
        *("speeds=linear", "speeds.spread=0.5", "local_steps.spread=0.5"),
        a=HETEROGENEOUS,
    )
    assert finish(run).sole_run.seconds == pytest.approx(10 * (4 * 2 + 8 * 2 / 3))


@pytest.mark.parametrize("budget", ["rounds=6", "samples=1003"])
def test_without_exchanges_workers_wait_at_the_end_of_a_round_alone(budget: str) -> None:
    """Work in proportion to speed: nobody waits in LocalSGD, while exchanges after every step give the gain away again."""
    common = ("K=4", "J=8", budget, "speeds=linear", "local_steps.spread=0.5")
    local, gossip = (finish(on_quadratics(f"algorithm={name}", *common, a=torch.ones(4, 1))[0]) for name in ("localsgd", "gossip_pga"))
    assert local.sole_run.samples == gossip.sole_run.samples
    assert gossip.sole_run.seconds > 1.2 * local.sole_run.seconds


def test_gossip_takes_the_same_time_however_its_steps_are_cut_into_rounds() -> None:
    common = ("algorithm=gossip", "K=4", "samples=1003", "speeds=lognormal")
    short, long = (finish(on_quadratics(*common, f"J={J}", a=torch.ones(4, 1))[0]) for J in (1, 8))
    assert short.sole_run.seconds == pytest.approx(long.sole_run.seconds, rel=1e-12)


@pytest.mark.parametrize("samples", [1600, 1603])
@pytest.mark.parametrize("model", list(speed_models))
def test_shared_steps_take_the_time_of_local_sgd_with_single_steps(model: str, samples: int) -> None:
    """The same workers with the same images each, of the same speeds; in the last step, too, where some have an image more."""
    common = (f"speeds={model}", f"samples={samples}")
    local, _ = on_quadratics("algorithm=localsgd", "K=8", "J=1", "batch_size=4", *common, a=torch.ones(8, 1))
    shared, _ = on_quadratics("algorithm=centralized", "data_parallel=8", "batch_size=32", *common, a=torch.ones(1, 1))
    assert np.array_equal(local.sole_run.speeds, shared.sole_run.speeds)
    assert finish(shared).sole_run.seconds == pytest.approx(finish(local).sole_run.seconds, rel=1e-12)


@pytest.mark.parametrize("workers", [1, 3, 4])
def test_a_lone_row_of_local_steps_shares_them_too(workers: int) -> None:
    """16 images a step: with three workers the first has six of them."""
    common = ("algorithm=lookahead", "J=5", "batch_size=16", "rounds=3", "speeds.throughput=16", "local_steps.spread=0.5")
    run, _ = on_quadratics(*common, f"data_parallel={workers}", a=torch.ones(1, 1))
    assert finish(run).sole_run.seconds == pytest.approx(15 * {1: 16, 3: 6, 4: 4}[workers] / 16)


@pytest.mark.parametrize("name", list(speed_models))
@pytest.mark.parametrize("K", [1, 2, 5, 40])
def test_speeds_are_positive_and_a_function_of_the_seed(name: str, K: int) -> None:
    model = speed_models[name]()
    drawn = model.draw(K, 3)
    assert drawn.shape == (K,) and drawn.dtype == np.float64 and (drawn > 0).all() and np.isfinite(drawn).all()
    assert np.array_equal(drawn, model.draw(K, 3))
    if K == 40:
        assert np.array_equal(drawn, model.draw(K, 4)) == (name in ("equal", "linear"))


def test_speeds_are_the_ones_their_names_say() -> None:
    assert speeds.Equal().draw(4, 0).tolist() == [1] * 4
    assert speeds.Linear(spread=0.6).draw(4, 0) == pytest.approx([0.4, 0.8, 1.2, 1.6])
    assert sorted(speeds.Stragglers(fraction=0.3, speed=0.1).draw(20, 0)) == [0.1] * 6 + [1] * 14
    assert sorted(speeds.Stragglers(fraction=0.1, speed=0.2).draw(2, 0)) == [0.2, 1], "one at least"
    logarithms = np.log(speeds.LogNormal(sigma=0.4).draw(4000, 0))
    assert abs(logarithms.mean()) < 4 * 0.4 / 4000**0.5 and logarithms.std() == pytest.approx(0.4, rel=0.05)
    assert (speeds.LogNormal(sigma=0).draw(5, 0) == 1).all()


def test_speeds_change_no_weights() -> None:
    common = ("algorithm=localsgd", "K=3", "J=2", "rounds=3")
    equal, unequal = trained(*common), trained(*common, "speeds=lognormal")
    assert torch.equal(equal.state.model, unequal.state.model)
    assert equal.sole_run.seconds != unequal.sole_run.seconds
