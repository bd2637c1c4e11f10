"""LocalSGD: momentum at averages, what averages cannot change, and the bias of local steps."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from fl_hydra.algorithms.localsgd import POLICIES
from fl_hydra.optim.sgdm import SGDM
from tests.support.exact import RecordingLocalSGD, assert_exact, module_of, weights_of
from tests.support.make import trainer
from tests.support.small import HETEROGENEOUS, PLAIN, finish, normal, on_quadratics, trained

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
    own, mean = kept.group.buffers.kept["momentum"], averaged.group.buffers.kept["momentum"]
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
        assert (run.group.buffers.kept[name] == run.group.buffers.kept[name][0]).all()
    assert run.group.buffers.kept["steps"].tolist() == [[6.0]] * 3


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


def test_one_worker_is_torch_sgd_step_by_step() -> None:
    algorithm = RecordingLocalSGD()
    run = trainer(
        "algorithm=localsgd", "K=1", "J=1", "rounds=6", "precision=fp64", "batch_size=16", "scheduler.warmup=0.3", algorithm=algorithm
    )
    module = module_of(run)
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0, momentum=0.9, weight_decay=1e-3)
    while not run.finished:
        run.run_round()
        inputs, targets, _ = algorithm.seen[-1]
        optimizer.param_groups[0]["lr"] = run.sole_run.lr
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(inputs[0]), targets[0]).backward()
        optimizer.step()
        assert_exact(run.state.model[0], weights_of(module, run))


@pytest.mark.parametrize("engine", ["loop", "stacked"])
def test_local_sgd_with_one_step_is_one_worker_with_the_batches_together(engine: str) -> None:
    algorithm = RecordingLocalSGD()
    run = trainer("algorithm=localsgd", "K=4", "J=1", "rounds=6", "precision=fp64", "batch_size=8", engine=engine, algorithm=algorithm)
    module = module_of(run)
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0, momentum=0.9, weight_decay=1e-3)
    while not run.finished:
        algorithm.seen.clear()
        run.run_round()
        inputs = torch.cat([inputs.flatten(0, 1) for inputs, _, _ in algorithm.seen])
        targets = torch.cat([targets.flatten() for _, targets, _ in algorithm.seen])
        assert len(targets) == 32
        optimizer.param_groups[0]["lr"] = run.sole_run.lr
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(inputs), targets).backward()
        optimizer.step()
        assert_exact(run.state.model[0], weights_of(module, run))


def test_momentum_outlives_a_round_for_workers_and_not_for_clients() -> None:
    workers = trainer("algorithm=localsgd", "K=2", "J=2", "rounds=3")
    workers.run_round()
    kept = workers.group.buffers.kept["momentum"]
    assert kept.abs().sum() > 0
    clients = trainer("algorithm=fedavg", "K=4", "C=0.5", "J=2", "rounds=3", "optimizer.momentum=0.9")
    clients.run_round()
    assert clients.group.buffers.kept == {}
