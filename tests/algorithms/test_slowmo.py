"""SlowMo, DiLoCo and Lookahead against their papers and the methods that they contain."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from fl_hydra.algorithms.localsgd import POLICIES
from fl_hydra.optim.outer import OuterSGD
from fl_hydra.runs.identity import describe
from fl_hydra.training.planning import plan_round
from tests.support.exact import assert_exact
from tests.support.make import experiment, trainer
from tests.support.small import HETEROGENEOUS, PLAIN, column, on_quadratics, rates, small, trained


@dataclass
class NoShortcut(OuterSGD):
    """Takes the outer step even where it comes to the mean."""

    @property
    def averages(self) -> bool:
        return False


@pytest.mark.parametrize("momentum", POLICIES)
@pytest.mark.parametrize("server", [OuterSGD(per_rate=True), NoShortcut(per_rate=True), NoShortcut()], ids=["mean", "per_rate", "sgd"])
def test_slowmo_without_slow_momentum_is_local_sgd(momentum: str, server: OuterSGD) -> None:
    common = ("K=4", "J=3", f"algorithm.momentum={momentum}", "samples=150")
    slowmo = trained("algorithm=slowmo", *common, server=replace(server, lr=1.0, momentum=0.0))
    local = trained("algorithm=localsgd", *common)
    assert_exact(slowmo.state.model, local.state.model)
    assert slowmo.sole_run.traffic == local.sole_run.traffic


@pytest.mark.parametrize("K", [1, 4])
@pytest.mark.parametrize("schedule", [("scheduler=constant",), ("scheduler=cosine", "scheduler.warmup=0.3")])
def test_slowmo_of_single_steps_is_heavy_ball(K: int, schedule: tuple[str, ...]) -> None:
    """With J=1 (x - mean) / gamma is the gradient: u <- beta u + g;  x <- x - alpha gamma u, at whatever rates."""
    common = (f"K={K}", "J=1", "rounds=12", "optimizer.weight_decay=1e-3", *schedule)
    slow = ("optimizer=sgd", "optimizer.lr=0.1", "server.lr=0.7", "server.momentum=0.8")
    slowmo = trained("algorithm=slowmo", *slow, *common)
    heavy_ball = trained("algorithm=localsgd", "optimizer=sgdm", "optimizer.lr=0.07", "optimizer.momentum=0.8", *common)
    assert_exact(slowmo.state.model, heavy_ball.state.model)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
def test_slowmo_divides_by_the_mean_rate_of_the_round(schedule: str) -> None:
    run, b = on_quadratics(
        *("algorithm=slowmo", "K=2", "J=3", "rounds=4", *PLAIN[:2], f"scheduler={schedule}", "server.lr=0.9", "server.momentum=0.5"),
        a=HETEROGENEOUS,
    )
    x, u = torch.zeros_like(b[:1]), torch.zeros_like(b[:1])
    for round in range(4):
        gammas, ends = rates(run)[3 * round : 3 * round + 3], x.expand_as(b)
        for gamma in gammas:
            ends = ends - gamma * HETEROGENEOUS * (ends - b)
        gamma = sum(gammas) / 3
        u = 0.5 * u + (x - ends.mean(0)) / gamma
        x = x - 0.9 * gamma * u
        run.run_round()
        assert_exact(run.state.server["momentum"], u)
        assert_exact(run.state.model, x)


def slow_buffers(*overrides: str) -> list[Tensor]:
    """The slow momentum after each of three rounds of two steps along a constant gradient."""
    run, b = on_quadratics("algorithm=slowmo", "K=2", "J=2", "rounds=3", "server.momentum=0.5", *overrides, a=column(0.0, 0.0))
    run.group.engine.gradient = lambda parameters, batch: b.clone()  # type: ignore[method-assign, assignment, misc]
    buffers = []
    while not run.finished:
        run.run_round()
        buffers.append(run.state.server["momentum"].clone())
    return buffers


def test_slow_momentum_keeps_its_meaning_when_the_rate_falls() -> None:
    falls = (*PLAIN[:2], "scheduler=step", "scheduler.milestones=[0.3,0.6]", "scheduler.drop=0.1")
    steady = slow_buffers(*PLAIN)
    for before, after in zip(steady, slow_buffers(*falls), strict=True):
        assert_exact(after, before)
    assert_exact(steady[2], 1.75 * steady[0])
    without = slow_buffers(*falls, "server.per_rate=false")
    assert not torch.allclose(without[2], 1.75 * without[0])


@pytest.mark.parametrize("scheduler", ["cosine", "linear", "polynomial"])
@pytest.mark.parametrize("precision", ["fp32", "fp64"])
def test_slowmo_survives_a_schedule_that_ends_at_zero(scheduler: str, precision: str) -> None:
    run = small(
        *("algorithm=slowmo", f"precision={precision}", "K=2", "J=1", "samples=403", "server.momentum=0.9"),
        *(f"scheduler={scheduler}", "scheduler.end=0"),
    )
    largest = 0.0
    while not run.finished:
        run.run_round()
        largest = max(largest, float(run.state.server["momentum"].abs().max()))
    assert 0 < run.sole_run.lr < 3e-4, "the last round divides by a tiny rate"
    assert run.state.model.isfinite().all() and run.state.server["momentum"].isfinite().all()
    assert largest < 100


def test_slowmo_survives_a_rate_that_is_zero_in_its_precision() -> None:
    run = small(
        *("algorithm=slowmo", "precision=fp32", "K=3", "J=1", "rounds=40", "server.momentum=0.9", "optimizer.lr=0.1"),
        *("scheduler=polynomial", "scheduler.power=30"),
    )
    while run.sole_run.round < 39:
        run.run_round()
    before = run.state.model.clone()
    run.run_round()
    assert 0 < run.sole_run.lr < 1e-46
    assert run.state.server["momentum"].isfinite().all()
    torch.testing.assert_close(run.state.model, before)


def test_diloco_is_adamw_of_each_worker_inside_and_nesterov_momentum_outside() -> None:
    """Old minus new is the pseudo-gradient d, u begins with d, the outer rate is not scheduled, and AdamW's moments stay where they are."""
    run, b = on_quadratics("algorithm=diloco", "K=2", "J=3", "rounds=3", "scheduler=cosine", a=HETEROGENEOUS)
    workers = [torch.zeros_like(goal).requires_grad_() for goal in b]
    inner = [torch.optim.AdamW([worker], lr=1.0, weight_decay=0.01) for worker in workers]
    x, u = torch.zeros_like(b[0]), None
    inner_rates = iter(rates(run))
    for _ in range(3):
        for worker in workers:
            worker.data.copy_(x)
        for gamma in [next(inner_rates) for _ in range(3)]:
            for worker, optimizer, a, goal in zip(workers, inner, HETEROGENEOUS, b, strict=True):
                worker.grad = a * (worker.detach() - goal)
                optimizer.param_groups[0]["lr"] = gamma
                optimizer.step()
        d = x - torch.stack([worker.detach() for worker in workers]).mean(0)
        u = d if u is None else 0.9 * u + d
        x = x - 0.7 * (d + 0.9 * u)
        run.run_round()
        assert_exact(run.state.model[0], x)
    for name, torch_name in (("first_moment", "exp_avg"), ("second_moment", "exp_avg_sq")):
        moments = run.group.buffers.kept[name]
        assert_exact(moments, torch.stack([optimizer.state[worker][torch_name] for worker, optimizer in zip(workers, inner, strict=True)]))
        assert not torch.allclose(moments[0], moments[1])
    assert run.group.buffers.kept["steps"].tolist() == [[9.0], [9.0]]


def test_lookahead_goes_a_part_of_the_way_to_the_fast_weights() -> None:
    common = ("J=5", "rounds=3", *PLAIN)
    run, b = on_quadratics("algorithm=lookahead", *common, "server.lr=0.3", a=column(2.0))
    slow = torch.zeros_like(b)
    for _ in range(3):
        fast = b + (1 - 0.1 * 2.0) ** 5 * (slow - b)
        slow = slow + 0.3 * (fast - slow)
        run.run_round()
        assert_exact(run.state.model, slow)


@pytest.mark.parametrize("K", [1, 3])
def test_lookahead_is_slowmo_without_slow_momentum(K: int) -> None:
    common = (f"K={K}", "J=5", "samples=190", "server.lr=0.5", "server.momentum=0")
    lookahead = trained("algorithm=lookahead", *common)
    slowmo = trained("algorithm=slowmo", "algorithm.momentum=keep", *common)
    assert_exact(lookahead.state.model, slowmo.state.model)


def test_lookahead_all_the_way_is_its_inner_optimizer() -> None:
    whole = trained("algorithm=lookahead", "J=5", "samples=190", "server.lr=1")
    plain = trained("algorithm=localsgd", "K=1", "J=1", "samples=190")
    assert_exact(whole.state.model, plain.state.model)
    assert whole.sole_run.traffic.messages == 0, "one worker has nobody to talk to"


def test_slow_momentum_divides_by_the_mean_rate_of_the_rounds_steps() -> None:
    """u = (x - mean) / gamma after the first round, whose rates rise from 1/20 to 8/20 of the peak; in the cut last round too, whose
    steps of a part of a batch count as whole ones."""
    settings = ("K=4", "J=8", "batch_size=8", "samples=1600", "precision=fp64", "optimizer=sgd", "optimizer.lr=0.2", "scheduler.warmup=0.4")
    plain, slow = (trainer(f"algorithm={name}", *settings) for name in ("localsgd", "slowmo"))
    start = slow.state.model.clone()
    for run in (plain, slow):
        run.run_round()
    (velocity,) = [value for value in slow.state.server.values() if value.shape == start.shape]
    assert_exact(velocity * float(0.2 * np.mean(np.arange(1, 9) / 20)), start - plain.state.model)
    plan = plan_round(
        trainer("algorithm=slowmo", "K=4", "J=8", "batch_size=8", "samples=85", "optimizer.lr=0.2", "scheduler=constant").sole_run
    )
    assert plan.steps == 3 and plan.mean_rate == pytest.approx(0.2)
    assert plan.rates[:, 2].tolist() == pytest.approx([0.2 * 6 / 8, *[0.2 * 5 / 8] * 3])
    constant, changing, single = (
        describe(experiment("algorithm=slowmo", "K=4", "rounds=10", "scheduler=constant", *more)).get("revisions")
        for more in ((), ("scheduler=cosine",), ("scheduler=cosine", "J=1"))
    )
    assert (constant, changing, single) == (None, {"mean_rate": 2}, None)
