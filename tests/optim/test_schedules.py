"""Schedules against their formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fl_hydra.errors import UserError
from fl_hydra.optim.schedules import Cosine, Exponential, Linear, Polynomial, Step, schedulers
from fl_hydra.training.planning import plan_round
from tests.support.make import config, experiment
from tests.support.small import small


@pytest.mark.parametrize("name", list(schedulers))
@pytest.mark.parametrize("warmup", [0.0, 0.1])
def test_schedule_starts_above_zero_peaks_at_one_and_never_leaves_it(name: str, warmup: float) -> None:
    schedule = schedulers[name](warmup=warmup)
    budget, step = 10_000, 64
    factors = [schedule.factor(before, step, budget) for before in range(0, budget, step)]
    assert factors[0] > 0
    assert max(factors) == 1
    assert all(0 <= factor <= 1 for factor in factors)
    if warmup == 0:
        assert factors[0] == 1
    else:
        assert factors[0] == pytest.approx(step / (warmup * budget))
        assert factors[: int(warmup * budget / step)] == sorted(factors[: int(warmup * budget / step)])


def test_decay_formulas() -> None:
    assert Cosine().decay(0.5) == pytest.approx(0.5)
    assert Cosine().decay(1.0) == pytest.approx(0, abs=1e-15)
    assert Cosine(end=0.2).decay(1.0) == pytest.approx(0.2)
    assert Linear(end=0.5).decay(0.5) == 0.75
    assert Exponential(end=0.01).decay(0.5) == pytest.approx(0.1)
    assert Polynomial(power=2).decay(0.5) == 0.25
    drops = Step(milestones=[0.5, 0.75], drop=0.1)
    assert [drops.decay(t) for t in (0.49, 0.5, 0.74, 0.75)] == pytest.approx([1, 0.1, 0.1, 0.01])


def test_cosine_is_torchs_when_every_step_is_a_fraction_of_the_budget() -> None:
    steps = 40
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    torch_schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        assert Cosine().factor(step * 64, 64, steps * 64) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        torch_schedule.step()
    assert math.isclose(optimizer.param_groups[0]["lr"], 0, abs_tol=1e-12)


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
