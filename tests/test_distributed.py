"""Synchronous distributed methods, their ledgers and clocks, against the properties of their papers, in float64.

Most are seen on quadratics: there a trainer's local steps are what they are in training, but gradients are known.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import groupby, pairwise
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from fl_hydra.algorithms.base import State
from fl_hydra.algorithms.hierarchical import Hierarchical
from fl_hydra.algorithms.localsgd import POLICIES, LocalSGD
from fl_hydra.errors import UserError
from fl_hydra.local_steps.base import Measured, Memory, local_step_rules
from fl_hydra.local_steps.measured import Drift, Loss, Noise
from fl_hydra.local_steps.scheduled import Doubling, Fixed, Linear, Phases, PostLocal
from fl_hydra.optim.outer import OuterSGD
from fl_hydra.optim.sgdm import SGDM
from fl_hydra.speeds import models as speeds
from fl_hydra.speeds.base import speed_models
from fl_hydra.training.experiment import Experiment
from fl_hydra.training.noise import DECAY, NoiseScale
from fl_hydra.training.planning import plan_round
from fl_hydra.training.rows import Batch, Clients
from fl_hydra.training.trainer import Trainer
from tests.support.make import PROJECT, config, experiment
from tests.test_algorithms import RecordingLocalSGD, assert_exact, module_of

TINY = ("precision=fp64", "model.filters=2", "model.hidden=4", "batch_size=4")
PLAIN = ("optimizer=sgd", "optimizer.weight_decay=0", "scheduler=constant")


@cache
def composed(*overrides: str) -> Experiment:
    """Composing takes longer than most of the training here, and settings repeat themselves."""
    return experiment(*TINY, *overrides)


def small(*overrides: str, engine: str = "loop", **parts: Any) -> Trainer:
    """A trainer of a small network; `parts` replace fields of its experiment."""
    return Trainer(replace(composed(*overrides), **parts), engine=engine)


def finish(run: Trainer) -> Trainer:
    while not run.finished:
        run.run_round()
    return run


def trained(*overrides: str, **parts: Any) -> Trainer:
    """A small network after its training on the digits."""
    return finish(small(*overrides, **parts))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


def on_quadratics(*overrides: str, a: Tensor, b: Tensor | None = None, noisy: bool = False, **parts: Any) -> tuple[Trainer, Tensor]:
    """A trainer whose row k descends f_k(x) = a_k / 2 |x - b_k|^2, a [K, 1], b [K, P], from x = 0; and b, random by default.

    noisy: every sample pulls in a direction of its label, so that a row's gradient depends on its batch, but not on x.
    """
    run = small(*overrides, engine="stacked", **parts)
    goals = normal(len(a), run.group.layout.size) if b is None else b
    pulls = normal(10, run.group.layout.size, seed=1) * noisy

    def gradient(parameters: Tensor, batch: Batch) -> Tensor:
        answer: Tensor = a * (parameters - goals) + pulls[batch.targets].mean(1)
        return answer

    run.group.engine.gradient = gradient  # type: ignore[method-assign]
    run.state.model.zero_()
    return run, goals


def rates(run: Trainer) -> list[float]:
    """The learning rate of every local step of a run whose rounds are whole and alike."""
    e = run.sole_run.experiment
    together = e.K * e.batch_size
    return [e.peak_lr * e.scheduler.factor(before, together, e.budget) for before in range(0, e.budget, together)]


HETEROGENEOUS = column(1.0, 3.0)


# SlowMo, DiLoCo, Lookahead, outer optimizers


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
    run.group.engine.gradient = lambda parameters, batch: b.clone()  # type: ignore[method-assign]
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
        moments = run.group.buffers.client_slots[name]
        assert_exact(moments, torch.stack([optimizer.state[worker][torch_name] for worker, optimizer in zip(workers, inner, strict=True)]))
        assert not torch.allclose(moments[0], moments[1])
    assert run.group.buffers.client_slots["steps"].tolist() == [[9.0], [9.0]]


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


@dataclass
class Watched(LocalSGD):
    """LocalSGD that remembers its last pseudo-gradient, old minus new: [1, P]."""

    def outer(self, state: State, clients: Clients, mean: Tensor) -> None:
        self.pseudo_gradient = state.model - mean
        super().outer(state, clients, mean)


TORCH_OUTER: list[tuple[str, Any, dict[str, Any]]] = [
    ("server=sgd", torch.optim.SGD, {"lr": 1.0}),
    ("server=sgd server.lr=0.6 server.momentum=0.5 server.weight_decay=0.1", torch.optim.SGD, {"lr": 0.6, "momentum": 0.5}),
    ("server=lookahead", torch.optim.SGD, {"lr": 0.5}),
    ("server=nesterov", torch.optim.SGD, {"lr": 0.7, "momentum": 0.9, "nesterov": True}),
    ("server=adam", torch.optim.Adam, {}),
    ("server=adam server.weight_decay=0.1 server.beta1=0.7", torch.optim.Adam, {"betas": (0.7, 0.999)}),
    ("server=adamw", torch.optim.AdamW, {}),
    ("server=adamw server.weight_decay=0.1", torch.optim.AdamW, {}),
    ("server=nadam", torch.optim.NAdam, {}),
    ("server=radam", torch.optim.RAdam, {}),
    ("server=adamax", torch.optim.Adamax, {}),
    ("server=adagrad", torch.optim.Adagrad, {}),
    ("server=rmsprop", torch.optim.RMSprop, {}),
    ("server=adadelta", torch.optim.Adadelta, {}),
]


@pytest.mark.parametrize(("settings", "torch_class", "keywords"), TORCH_OUTER, ids=[settings for settings, _, _ in TORCH_OUTER])
def test_outer_optimizer_is_torchs_on_the_pseudo_gradient(settings: str, torch_class: Any, keywords: dict[str, Any]) -> None:
    algorithm = Watched()
    run, _ = on_quadratics(*settings.split(), "algorithm=localsgd", "K=2", "J=3", "rounds=8", a=HETEROGENEOUS, algorithm=algorithm)
    reference = run.state.model[0].clone().requires_grad_()
    decay = {"weight_decay": 0.1} if "weight_decay" in settings else {}
    torch.set_default_dtype(torch.float64)  # of scalars that torch.optim keeps, such as NAdam's product
    try:
        optimizer = torch_class([reference], **keywords, **decay)
        while not run.finished:
            run.run_round()
            reference.grad = algorithm.pseudo_gradient[0].clone()
            optimizer.step()
            assert_exact(run.state.model[0], reference.detach())
    finally:
        torch.set_default_dtype(torch.float32)


def test_every_outer_optimizer_is_compared() -> None:
    shipped = {file.stem for file in (PROJECT / "conf" / "server").glob("*.yaml")}
    assert {settings.split()[0].removeprefix("server=") for settings, _, _ in TORCH_OUTER} == shipped - {"slowmo"}


def test_outer_clipping_bounds_the_pseudo_gradient() -> None:
    algorithm = Watched()
    run, _ = on_quadratics("algorithm=localsgd", "K=2", "J=3", "rounds=2", "server.clip=0.01", a=HETEROGENEOUS, algorithm=algorithm)
    run.run_round()
    assert algorithm.pseudo_gradient.norm() > 0.01
    assert float(run.state.model.norm()) == pytest.approx(0.01, rel=1e-3)


# Hierarchical LocalSGD


def same_run(one: Trainer, other: Trainer) -> None:
    """The same models, for as many messages and in the same time."""
    assert_exact(one.state.model, other.state.model)
    assert replace(one.sole_run.traffic, block_averages=0) == other.sole_run.traffic
    assert one.sole_run.seconds == pytest.approx(other.sole_run.seconds)


def test_one_block_is_local_sgd() -> None:
    """Also where the budget ends within a round of blocks: after 2 rounds, 2 periods and 5 samples of each worker."""
    common = ("K=4", "J=2", "samples=340")
    blocks = trained("algorithm=hierarchical", "algorithm.blocks=1", "algorithm.J_b=4", *common)
    same_run(blocks, trained("algorithm=localsgd", *common))
    assert blocks.sole_run.round == 3


@pytest.mark.parametrize("momentum", POLICIES)
def test_blocks_of_single_periods_are_local_sgd(momentum: str) -> None:
    common = ("K=4", "J=3", "samples=250", f"algorithm.momentum={momentum}")
    same_run(trained("algorithm=hierarchical", "algorithm.J_b=1", *common), trained("algorithm=localsgd", *common))


@pytest.mark.parametrize("momentum", POLICIES)
def test_blocks_of_one_worker_are_local_sgd_with_rounds_of_all_periods(momentum: str) -> None:
    common = ("K=4", "samples=250", f"algorithm.momentum={momentum}")
    alone = trained("algorithm=hierarchical", "algorithm.blocks=4", "J=2", "algorithm.J_b=3", *common)
    same_run(alone, trained("algorithm=localsgd", "J=6", *common))


def test_blocks_of_neighbours_are_averaged_in_every_period() -> None:
    a = column(1.0, 2.0, 3.0, 4.0)
    run, b = on_quadratics("algorithm=hierarchical", "algorithm.J_b=3", "K=4", "J=2", "rounds=2", *PLAIN, a=a)
    quadratic, seen = run.group.engine.gradient, []

    def watched(parameters: Tensor, batch: Batch) -> Tensor:
        seen.append(parameters.clone())
        return quadratic(parameters, batch)

    run.group.engine.gradient = watched  # type: ignore[method-assign]
    x = torch.zeros_like(b)
    for step in range(12):
        if step % 6 == 0:
            run.run_round()
        assert_exact(seen[step], x)
        x = x - 0.1 * a * (x - b)
        if step % 2 == 1:
            x = torch.cat([x[:2].mean(0).expand(2, -1), x[2:].mean(0).expand(2, -1)])
            assert not torch.allclose(x[0], x[2])
        if step % 6 == 5:
            x = x.mean(0).expand_as(x)
    assert_exact(run.state.model, x[:1])


@pytest.mark.parametrize(("J", "J_b"), [(1, 4), (3, 4), (8, 2), (5, 1)])
def test_blocks_are_averaged_after_every_period_but_the_last(J: int, J_b: int) -> None:
    """In a round: after steps J, 2 J, ..., (J_b - 1) J, and never else; after J_b J all workers are."""
    run, _ = on_quadratics(
        "algorithm=hierarchical", f"algorithm.J_b={J_b}", "K=4", f"J={J}", f"samples={3 * 16 * J * J_b}", *PLAIN, a=torch.ones(4, 1)
    )
    for round in range(1, 4):
        mixing = plan_round(run.sole_run).mixing
        assert len(mixing) == J * J_b
        assert [step for step, mixed in enumerate(mixing, 1) if mixed is not None] == [period * J for period in range(1, J_b)]
        run.run_round()
        assert (run.sole_run.traffic.averages, run.sole_run.traffic.block_averages) == (round * J_b, round * (J_b - 1))


# Post-local SGD


def steps_of_rounds(run: Trainer) -> list[int]:
    """Local steps of each round of a run, which is trained."""
    steps = [0]
    while not run.finished:
        run.run_round()
        steps.append(run.sole_run.traffic.steps)
    return [after - before for before, after in pairwise(steps)]


@pytest.mark.parametrize(("switch", "J"), [(0, 4), (1, 1)])
def test_post_local_sgd_is_local_sgd_before_and_after_its_switch(switch: int, J: int) -> None:
    post = trained("algorithm=post_local", f"local_steps.switch={switch}", "K=4", "J=4", "samples=250")
    plain = trained("algorithm=localsgd", "K=4", f"J={J}", "samples=250")
    assert torch.equal(post.state.model, plain.state.model)
    assert post.sole_run.traffic == plain.sole_run.traffic


def test_rules_count_the_steps_of_every_block() -> None:
    """A round of hierarchical LocalSGD has J_b periods of J steps: a switch comes after so many steps, not after so many rounds."""
    run, _ = on_quadratics(
        "algorithm=hierarchical",
        "algorithm.J_b=2",
        "local_steps=post_local",
        "local_steps.at_step=4",
        "K=2",
        "J=4",
        "samples=200",
        a=HETEROGENEOUS,
    )
    seen = []
    while not run.finished:
        run.run_round()
        seen.append((run.sole_run.J, run.sole_run.traffic.steps))
    assert seen[:4] == [(1, 2), (1, 4), (4, 12), (4, 20)]


@pytest.mark.parametrize("at_step", [0, 1, 5])
def test_post_local_sgd_switches_at_its_step(at_step: int) -> None:
    run, _ = on_quadratics("algorithm=post_local", f"local_steps.at_step={at_step}", "K=2", "J=4", "samples=136", a=HETEROGENEOUS)
    steps = steps_of_rounds(run)
    assert steps[:at_step] == [1] * at_step
    assert steps[at_step : at_step + 3] == [4, 4, 4]
    assert sum(steps) == 17


def test_post_local_sgd_switches_after_its_fraction_of_the_budget() -> None:
    run, _ = on_quadratics("algorithm=post_local", "local_steps.switch=0.5", "K=2", "J=4", "samples=256", a=HETEROGENEOUS)
    assert steps_of_rounds(run) == [1] * 16 + [4] * 4


# Momentum at averages, and what averages cannot change


ON_SHARED = ("K=4", "samples=256", "optimizer.lr=0.05")


@pytest.mark.parametrize(
    "optimizer",
    [
        ("optimizer=sgd",),
        ("optimizer=sgdm", "algorithm.momentum=average"),
        ("optimizer=sgdm", "algorithm.momentum=keep"),
        ("optimizer=sgdm", "optimizer.nesterov=true", "algorithm.momentum=average"),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("J", [2, 8])
def test_averages_of_linear_recursions_are_one_worker_with_all_batches(optimizer: tuple[str, ...], J: int) -> None:
    """On a quadratic that all share, with noise that does not depend on x, the mean's path is that of minibatch SGD, for any J."""
    a = torch.ones(4, 1, dtype=torch.float64)
    b = normal(1, 1).expand(4, 1)
    local, _ = on_quadratics("algorithm=localsgd", f"J={J}", *ON_SHARED, *optimizer, a=a, b=b, noisy=True)
    together, _ = on_quadratics("algorithm=localsgd", "J=1", *ON_SHARED, *optimizer, a=a, b=b, noisy=True)
    while not local.finished:
        local.run_round()
        while together.sole_run.samples < local.sole_run.samples:
            together.run_round()
        assert_exact(local.state.model, together.state.model)
    assert local.state.model.abs().max() > 0.1


SCHEDULES_OF_J = [
    *("linear", "doubling", "post_local local_steps.at_step=5", "phases local_steps.numbers=[3,1] local_steps.borders=[0.2,0.6]"),
    "drift",  # follows what it sees, which is nobody's plan
]


@pytest.mark.parametrize("rule", SCHEDULES_OF_J)
@pytest.mark.parametrize("momentum", ["optimizer=sgd", "optimizer=sgdm"])
def test_a_schedule_of_steps_changes_the_number_of_averages_and_nothing_else(rule: str, momentum: str) -> None:
    """On that quadratic, along the same noise: as many averages as J_t has numbers, of which the sum is the number of steps."""
    a = torch.ones(4, 1, dtype=torch.float64)
    b = normal(1, 1).expand(4, 1)
    common = ("algorithm=localsgd", "K=4", "samples=512", "optimizer.lr=0.05", momentum)  # 32 steps of 16 samples, at rates that fall
    scheduled, _ = on_quadratics(*common, "J=6", f"local_steps={rule.split()[0]}", *rule.split()[1:], a=a, b=b, noisy=True)
    together, _ = on_quadratics(*common, "J=1", a=a, b=b, noisy=True)
    numbers = steps_of_rounds(scheduled)
    assert sum(numbers) == 32
    assert len(set(numbers)) > 1, "else it is no schedule"
    assert scheduled.sole_run.traffic.averages == len(numbers)
    assert_exact(scheduled.state.model, finish(together).state.model)


def test_momentum_that_is_reset_begins_every_round_at_zero() -> None:
    """Two steps a round, by hand: v = g and x <- x - lr g, then v = 0.9 g + g' and x <- x - lr v, whatever v was before; then the mean."""
    run, b = on_quadratics(
        *("algorithm=localsgd", "algorithm.momentum=reset", "K=2", "J=2", "rounds=3", "scheduler=constant"),
        *("optimizer=sgdm", "optimizer.lr=0.1", "optimizer.momentum=0.9", "optimizer.weight_decay=0"),
        a=HETEROGENEOUS,
    )
    x = torch.zeros_like(b)
    for _ in range(3):
        first = HETEROGENEOUS * (x - b)
        x = x - 0.1 * first
        x = x - 0.1 * (0.9 * first + HETEROGENEOUS * (x - b))
        x = x.mean(0).expand_as(x)
        run.run_round()
        assert_exact(run.state.model, x[:1])


def test_momentum_that_is_reset_is_less_momentum() -> None:
    a, b = torch.ones(4, 1, dtype=torch.float64), torch.ones(4, 1, dtype=torch.float64)
    reset, kept = (
        finish(on_quadratics("algorithm=localsgd", "J=4", *ON_SHARED, f"algorithm.momentum={policy}", a=a, b=b)[0])
        for policy in ("reset", "keep")
    )
    assert (reset.state.model < kept.state.model - 0.01).all(), "it has come less far towards 1"


@pytest.mark.parametrize("nesterov", ["true", "false"])
def test_single_steps_are_the_same_with_momentum_kept_or_averaged(nesterov: str) -> None:
    """Though workers' own buffers are far from each other, their mean is what is averaged."""
    common = ("algorithm=localsgd", "K=4", "J=1", "rounds=8", f"optimizer.nesterov={nesterov}", "optimizer.lr=0.1")
    kept, averaged = trained(*common), trained(*common, "algorithm.momentum=average")
    torch.testing.assert_close(kept.state.model, averaged.state.model, rtol=0, atol=1e-14)
    own, mean = kept.group.buffers.client_slots["momentum"], averaged.group.buffers.client_slots["momentum"]
    assert (mean == mean[0]).all()
    assert_exact(own.mean(0), mean[0])
    assert (own - own.mean(0)).norm() / 2 > own.mean(0).norm()


def test_longer_rounds_tell_the_momentum_policies_apart() -> None:
    ends = {
        policy: trained("algorithm=localsgd", "K=4", "J=4", "rounds=6", "optimizer.lr=0.1", f"algorithm.momentum={policy}").state.model
        for policy in POLICIES
    }
    for one, other in (("keep", "average"), ("keep", "reset"), ("average", "reset")):
        assert (ends[one] - ends[other]).norm() / ends[one].norm() > 1e-4


def test_averaged_momentum_starts_every_round_equal_and_keeps_its_counters() -> None:
    run = trained("algorithm=localsgd", "optimizer=adamw", "K=3", "J=2", "rounds=3", "algorithm.momentum=average")
    for name in ("first_moment", "second_moment"):
        assert (run.group.buffers.client_slots[name] == run.group.buffers.client_slots[name][0]).all()
    assert run.group.buffers.client_slots["steps"].tolist() == [[6.0]] * 3


# The bias of local steps


@cache
def fixed_point(lr: float, J: int) -> Tensor:
    """Where a round of LocalSGD leaves x: a round is an affine map x -> s + c x, seen at 0 and at 1."""
    run, _ = on_quadratics("algorithm=localsgd", "K=2", "samples=1000", *PLAIN, a=HETEROGENEOUS, J=J, optimizer=SGDM(lr=lr, momentum=0.0))
    run.run_round()
    at_zero = run.state.model[0].clone()
    run.state.model.fill_(1.0)
    run.run_round()
    return at_zero / (1 - (run.state.model[0] - at_zero))


def weighted(weights: Tensor, b: Tensor) -> Tensor:
    return (weights * b).sum(0) / weights.sum(0)


def bias(lr: float, J: int) -> float:
    """How far the fixed point is from the minimum of the mean of f_k."""
    point = fixed_point(lr, J)
    return float((point - weighted(HETEROGENEOUS, normal(2, len(point)))).norm())


RATES, STEPS = (0.01, 0.1, 0.3), (1, 2, 8)


@pytest.mark.parametrize("lr", RATES)
@pytest.mark.parametrize("J", STEPS)
def test_fixed_point_is_that_of_the_closed_form(lr: float, J: int) -> None:
    """x* = sum (1 - r_k^J) b_k / sum (1 - r_k^J) with r_k = 1 - lr a_k."""
    point = fixed_point(lr, J)
    assert_exact(point, weighted(1 - (1 - lr * HETEROGENEOUS) ** J, normal(2, len(point))))


def test_bias_grows_with_the_rate_and_with_local_steps_and_is_none_at_one() -> None:
    for lr in RATES:
        assert bias(lr, 1) < 1e-12
        assert all(bias(lr, J) < 0.95 * bias(lr, more) for J, more in pairwise(STEPS))
    for J in STEPS[1:]:
        assert all(bias(lr, J) < 0.95 * bias(larger, J) for lr, larger in pairwise(RATES))


def test_bias_vanishes_with_the_rate() -> None:
    for J in (2, 8):
        assert bias(1e-3, J) < 0.02 * bias(0.3, J)
        assert bias(1e-4, J) == pytest.approx(bias(1e-3, J) / 10, rel=0.02), "of first order in the rate"
    assert bias(1e-4, 8) == pytest.approx(7 * bias(1e-4, 2), rel=0.01), "and in the steps after the first"


# Rules for the number of local steps


@pytest.mark.parametrize("name", list(local_step_rules))
@pytest.mark.parametrize(
    ("cohort", "spread"),
    [(("algorithm=localsgd", "K=5"), 0.0), (("algorithm=localsgd", "K=5"), 0.6), (("algorithm=fedavg", "K=6", "C=0.5"), 0.6)],
    ids=["workers", "unequal workers", "unequal clients"],
)
def test_every_rule_spends_the_same_samples(name: str, cohort: tuple[str, ...], spread: float) -> None:
    rule = local_step_rules[name](spread=spread)
    run = small(*cohort, "J=8", "samples=403", local_steps=rule, noise_scale="noise" in rule.measures, engine="stacked")
    while not run.finished:
        run.run_round()
        assert run.sole_run.J is not None and 1 <= run.sole_run.J <= 8
    assert run.sole_run.samples == run.sole_run.computed == run.sole_run.cursors.sum() == 403


TENTHS = [tenth / 10 for tenth in range(10)]


@pytest.mark.parametrize(
    ("rule", "J", "expected"),
    [
        (Fixed(), 8, [8] * 10),
        (Linear(), 10, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
        (Linear(start=6), 10, [6, 6, 7, 7, 8, 8, 9, 9, 10, 10]),
        (Linear(start=4), 4, [4] * 10),
        (Doubling(), 16, [1, 1, 2, 2, 4, 4, 8, 8, 16, 16]),
        (Doubling(start=4), 8, [4] * 5 + [8] * 5),
        (Doubling(start=3), 10, [3] * 5 + [6] * 5),
        (Phases(), 8, [1, 1, 1, 4, 4, 8, 8, 8, 8, 8]),
        (Phases(borders=[0.1, 0.8, 1.0], numbers=[7, 2, 3]), 5, [7] + [2] * 7 + [3] * 2),
        (PostLocal(switch=0.3), 8, [1] * 3 + [8] * 7),
        (PostLocal(switch=0.9, at_step=3), 8, [1] * 3 + [8] * 7),
    ],
    ids=repr,
)
def test_scheduled_numbers_of_steps(rule: Any, J: int, expected: list[int]) -> None:
    numbers: list[int] = []
    for progress in TENTHS:
        numbers.append(rule.steps(J, progress, sum(numbers), {}))
    assert numbers == expected


def test_doubling_gives_every_number_an_equal_part() -> None:
    numbers = [Doubling().steps(64, step / 7000, 0, {}) for step in range(7000)]
    assert [(number, len(list(group))) for number, group in groupby(numbers)] == [(2**i, 1000) for i in range(7)]


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

    def observe(self, measured: Measured, J: int, samples: int, progress: float, memory: Memory) -> None:
        self.seen.append(measured)


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
    run.group.engine.gradient = lambda parameters, batch: torch.randn(parameters.shape, dtype=torch.float64, generator=noise)  # type: ignore[method-assign]
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


# Unequal work


@pytest.mark.parametrize("K", [1, 2, 3, 7, 16])
@pytest.mark.parametrize("steps", [1, 2, 8, 33])
@pytest.mark.parametrize("spread", [0.0, 0.3, 0.5, 0.99])
def test_unequal_work_is_equally_spaced_around_its_mean(K: int, steps: int, spread: float) -> None:
    rule = Fixed(spread=spread)
    workers = rule.of_clients(steps, np.ones(K), federated=False, seed=0)
    assert workers.dtype == np.int64 and workers.shape == (K,)
    assert workers.mean() == steps and workers.min() >= 1
    if K > 1:
        assert abs(workers - steps * np.linspace(1 - spread, 1 + spread, K)).max() <= max(0.5, 1 - steps * (1 - spread)) + 1e-9
    assert (np.diff(workers) >= 0).all()
    clients = rule.of_clients(steps, np.ones(K), federated=True, seed=0)
    assert sorted(clients.tolist()) == workers.tolist()


@pytest.mark.parametrize("federated", [False, True])
def test_slow_workers_do_less_work(federated: bool) -> None:
    speeds = np.array([1.0, 0.2, 3.0, 0.5, 2.0])
    steps = Fixed(spread=0.5).of_clients(20, speeds, federated, seed=0)
    assert steps.tolist() == [20, 10, 30, 15, 25]


def test_unequal_work_of_clients_is_drawn_once_for_a_seed() -> None:
    def drawn(seed: int) -> list[int]:
        steps: list[int] = Fixed(spread=0.5).of_clients(10, np.ones(20), federated=True, seed=seed).tolist()
        return steps

    assert drawn(0) == drawn(0) != drawn(1)
    assert drawn(0) != sorted(drawn(0))


def test_workers_count_alike_however_many_steps_they_took() -> None:
    """In the cut last round, too, where all of them stop in the middle."""
    a = column(1.0, 2.0, 3.0)
    run, b = on_quadratics("algorithm=localsgd", "K=3", "J=4", "samples=72", "local_steps.spread=0.5", *PLAIN, a=a)
    x = torch.zeros_like(b[0])
    for steps in ([2, 4, 6], [1, 2, 3]):
        x = (b + (1 - 0.1 * a) ** column(*steps) * (x - b)).mean(0)
        run.run_round()
        assert_exact(run.state.model[0], x)
    assert run.sole_run.cursors.tolist() == [12, 24, 36]


def test_workers_of_a_cut_round_count_by_the_samples_that_were_left_for_them() -> None:
    """And take steps in proportion: of one of the four samples of a batch, a quarter of the rate."""
    run, b = on_quadratics("algorithm=localsgd", "K=3", "J=1", "samples=4", *PLAIN, a=torch.ones(3, 1))
    run.run_round()
    assert run.sole_run.cursors.tolist() == [2, 1, 1]
    assert_exact(run.state.model[0], 0.1 * (0.5 * b[0] / 2 + 0.25 * b[1] / 4 + 0.25 * b[2] / 4))


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
            watched = noise.watching(gaussian, lane, run, block)
            for _ in range(2):  # of which only the first counts
                watched(torch.zeros(block.stop - block.start, P), of_rows(block))
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


# The ledger


def ledger(*overrides: str, rows: int = 4) -> dict[str, float]:
    """The ledger of a trained run, with bytes in payloads of one model."""
    run, _ = on_quadratics(*overrides, a=torch.ones(rows, 1))
    finish(run)
    payload = 8 * run.group.layout.size
    return {
        name: value / payload if name in ("bytes_up", "bytes_down", "exchanged") else value
        for name, value in asdict(run.sole_run.traffic).items()
    }


def entries(averages: int, K: int, steps: int, within_blocks: int = 0) -> dict[str, float]:
    """What so many means over K workers cost: everyone sends a model and receives one."""
    sent = averages * K
    return {
        "bytes_up": sent,
        "bytes_down": sent,
        "messages": 2 * sent,
        "steps": steps,
        "averages": averages,
        "exchanges": 0,
        "exchanged": 0,
        "block_averages": within_blocks,
        "served": 0,
    }


@pytest.mark.parametrize(
    ("overrides", "averages", "steps"),
    [
        ("algorithm=localsgd J=8 rounds=5", 5, 40),
        ("algorithm=localsgd J=8 samples=643", 6, 41),  # the cut round is a round
        ("algorithm=slowmo J=8 rounds=5", 5, 40),
        ("algorithm=diloco J=8 rounds=5", 5, 40),
        ("algorithm=localsgd J=8 rounds=5 server=adam", 5, 40),
        ("algorithm=localsgd J=8 rounds=5 algorithm.momentum=reset", 5, 40),
        ("algorithm=localsgd J=8 rounds=5 algorithm.momentum=average", 10, 40),
        ("algorithm=localsgd J=8 rounds=5 algorithm.momentum=average optimizer=adamw", 15, 40),
        ("algorithm=localsgd J=8 rounds=5 algorithm.momentum=average optimizer=sgd", 5, 40),
        ("algorithm=post_local J=8 local_steps.at_step=8 samples=640", 8 + 4, 40),
        ("algorithm=hierarchical J=2 algorithm.J_b=4 rounds=5", 5 * 4, 40),
        ("algorithm=hierarchical J=2 algorithm.J_b=4 algorithm.blocks=4 rounds=5", 5, 40),
        ("algorithm=hierarchical J=2 algorithm.J_b=4 samples=560", 4 * 4 + 2, 35),
    ],
)
def test_traffic_of(overrides: str, averages: int, steps: int) -> None:
    within_blocks = averages - 5 if "hierarchical" in overrides else 0
    assert ledger(*overrides.split(), "K=4", "batch_size=4") == entries(averages, 4, steps, within_blocks)


def test_shared_steps_cost_an_average_each_and_take_a_fraction_of_the_time() -> None:
    alone, shared = (trained("algorithm=centralized", "samples=1300", f"data_parallel={n}") for n in (1, 4))
    assert torch.equal(alone.state.model, shared.state.model)
    payload = 8 * shared.group.layout.size
    assert asdict(shared.sole_run.traffic) == {
        **entries(325, 4, 325),
        "bytes_up": 325 * 4 * payload,
        "bytes_down": 325 * 4 * payload,
    }
    assert alone.sole_run.traffic.messages == 0 and alone.sole_run.traffic.steps == 325
    assert shared.sole_run.seconds == pytest.approx(alone.sole_run.seconds / 4)


def test_large_batches_and_local_steps_are_charged_alike() -> None:
    """K workers that share each step pay for what LocalSGD with J=1 pays for."""
    shared = ledger("algorithm=centralized", "samples=1600", "batch_size=16", "data_parallel=4", rows=1)
    assert shared == ledger("algorithm=localsgd", "samples=1600", "K=4", "J=1", "batch_size=4")


# Simulated clocks


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


def test_blocks_wait_for_their_own_workers() -> None:
    blocks = Hierarchical(blocks=2)
    mixing = blocks.mixing(4, J=2, j=1, steps=8, taken=0)
    assert mixing is not None
    assert blocks.wait(np.array([1.0, 4.0, 2.0, 3.0]), mixing).tolist() == [4, 4, 3, 3]
    common = ("K=4", "J=4", "rounds=3", "speeds=linear", "speeds.throughput=4")
    run, _ = on_quadratics("algorithm=hierarchical", *common, a=torch.ones(4, 1))
    assert finish(run).sole_run.seconds == pytest.approx(3 * 4 * 4 / 0.5), "whose slowest worker is never waited for twice"


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


# Large batches


TABLE = [512, 1024, 2048, 4096, 8192, 16384, 32768]


@pytest.mark.parametrize(
    ("lr", "warmup", "rates", "warmups", "length"),
    [
        (4 / (2**3 * 100), 0.3125 / 90, "0.0050 0.0071 0.0100 0.0141 0.0200 0.0283 0.0400", "0.3125 0.625 1.25 2.5 5 10 20", 90),
        (5 / (2**3 * 1e3), 1 / 320, "0.0006 0.0009 0.0013 0.0018 0.0025 0.0035 0.0050", "1 2 4 8 16 32 64", 320),
    ],
    ids=["ResNet-50", "BERT"],
)
def test_large_batch_schedule_is_that_of_the_lamb_paper(lr: float, warmup: float, rates: str, warmups: str, length: int) -> None:
    """You et al., ICLR 2020, tables 4 and 5: rates by the square root of the batch, warm-up (of 90 epochs; in 1/320) linear in it."""
    schedule = config("scheduler=large_batch", "scheduler.reference=512", f"scheduler.warmup={warmup}").scheduler
    assert " ".join(f"{lr * schedule.scale(batch, 1):.4f}" for batch in TABLE) == rates
    # The tables give the same rates as c / (2^(3 - i / 2) 10^e), i doublings after 512.
    assert [lr * schedule.scale(batch, 1) for batch in TABLE] == pytest.approx([8 * lr / 2 ** (3 - i / 2) for i in range(7)], rel=1e-12)
    assert " ".join(f"{length * schedule.warmup_of(batch):.5g}" for batch in TABLE) == warmups


def test_large_batch_schedule_is_bert_s_as_shipped() -> None:
    shipped = config("scheduler=large_batch", "optimizer=lamb")
    schedule = shipped.scheduler
    assert shipped.optimizer.lr * schedule.scale(512, 1) == pytest.approx(0.005, rel=2e-3), "the rate of ResNet-50"
    assert [schedule.warmup_of(batch) for batch in TABLE] == pytest.approx([1 / 320, 1 / 160, 1 / 80, 1 / 40, 1 / 20, 1 / 10, 1 / 5])
    budget = 32768 * 100
    factors = [schedule.factor(before, 32768, budget, 32768) for before in range(0, budget, 32768)]
    assert factors[:20] == pytest.approx([(step + 1) / 20 for step in range(20)])
    assert factors[20:] == pytest.approx([1 - step / 80 for step in range(80)]), "then a straight line to 0"


def test_large_batch_schedule_reaches_the_optimizer() -> None:
    common = ("algorithm=centralized", "scheduler=large_batch", "scheduler.reference=16", "scheduler.warmup=0.05", "samples=1280")
    run = small(*common, "batch_size=64", "optimizer.lr=0.1")
    rates = plan_round(run.sole_run).rates[0]
    assert rates[:4] == pytest.approx([0.05, 0.1, 0.15, 0.2]), "a warm-up over a fifth, up to twice the rate"
    assert rates[4:] == pytest.approx([0.2 * (1 - step / 16) for step in range(16)])
    with pytest.raises(UserError, match="batch size below 320"):
        experiment(*common, "batch_size=320")


def test_large_batch_cosine_warms_up_alike_and_then_is_a_cosine() -> None:
    shipped = config("scheduler=large_batch_cosine").scheduler
    assert [shipped.warmup_of(batch) for batch in TABLE] == pytest.approx([2**i / 320 for i in range(7)], rel=1e-12)
    common = ("algorithm=centralized", "scheduler=large_batch_cosine", "scheduler.reference=16", "scheduler.warmup=0.05", "samples=1280")
    rates = plan_round(small(*common, "batch_size=64", "optimizer.lr=0.1").sole_run).rates[0]
    assert rates[:4] == pytest.approx([0.05, 0.1, 0.15, 0.2], rel=1e-12), "a warm-up over a fifth, up to twice the rate"
    assert rates[4:] == pytest.approx([0.1 * (1 + np.cos(np.pi * step / 16)) for step in range(16)], rel=1e-9)


@pytest.mark.parametrize("optimizer", ["sgdm", "adamw", "lars", "lamb"])
@pytest.mark.parametrize("scheduler", ["large_batch", "large_batch_cosine"])
def test_every_optimizer_begins_its_scaling_at_its_own_rate(optimizer: str, scheduler: str) -> None:
    """All shipped rates are for batch 64, so that a grid over optimizers and batch sizes handicaps none."""
    chosen = config(f"optimizer={optimizer}", f"scheduler={scheduler}", "dataset=digits")
    assert chosen.scheduler.scale(64, 1) == 1
    assert chosen.scheduler.scale(256, 1) == 2


@pytest.mark.parametrize(("scaling", "factor"), [("none", 1), ("sqrt", 3), ("linear", 9)])
def test_rate_grows_with_the_workers_that_are_averaged(scaling: str, factor: int) -> None:
    scaled = f"scheduler.scale_K={scaling}"
    assert experiment("algorithm=localsgd", "K=9", "optimizer.lr=0.01", scaled).peak_lr == pytest.approx(0.01 * factor)
    assert experiment("algorithm=localsgd", "K=1", "optimizer.lr=0.01", scaled).peak_lr == 0.01
    cohort = ("algorithm=fedavg", "K=36", "C=0.25", "optimizer.lr=0.01", scaled)
    assert experiment(*cohort).peak_lr == pytest.approx(0.01 * factor), "by those of a round, not by all"
    both = ("scheduler.scale_batch=linear", "scheduler.reference=16", "batch_size=64")
    assert experiment(*cohort, *both).peak_lr == pytest.approx(0.04 * factor)
