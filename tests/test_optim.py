"""Row rules against torch.optim, and schedules against their formulas."""

from __future__ import annotations

import math

import pytest
import torch

from fl_hydra.optim.adamw import AdamW
from fl_hydra.optim.base import Optimizer, optimizers
from fl_hydra.optim.schedules import Cosine, Exponential, Linear, Polynomial, Step, schedulers
from fl_hydra.optim.sgdm import SGDM

RULES = [
    (SGDM(momentum=0.0, weight_decay=1e-2), torch.optim.SGD, {"weight_decay": 1e-2}),
    (SGDM(momentum=0.9, weight_decay=1e-2), torch.optim.SGD, {"momentum": 0.9, "weight_decay": 1e-2}),
    (SGDM(momentum=0.9, nesterov=True), torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    (AdamW(weight_decay=0.1, beta1=0.8, beta2=0.95), torch.optim.AdamW, {"weight_decay": 0.1, "betas": (0.8, 0.95)}),
    (AdamW(weight_decay=0.0), torch.optim.AdamW, {"weight_decay": 0.0}),
]


@pytest.mark.parametrize(("rule", "torch_class", "settings"), RULES)
def test_rule_is_torch_optim_step_by_step_in_every_row(rule: Optimizer, torch_class: type, settings: dict[str, object]) -> None:
    """Three rows with rates of their own: each follows torch.optim as if it were alone."""
    generator = torch.Generator().manual_seed(1)
    rows, size = 3, 20
    parameters = torch.randn(rows, size, dtype=torch.float64, generator=generator)
    references = [parameters[row].clone().requires_grad_() for row in range(rows)]
    rates = torch.tensor([[0.1], [0.01], [0.003]], dtype=torch.float64)
    torch_optimizers = [torch_class([reference], lr=float(rate), **settings) for reference, rate in zip(references, rates, strict=True)]
    slots = {name: torch.zeros(rows, size if full else 1, dtype=torch.float64) for name, full in rule.slots.items()}
    hyper = {name: torch.full((rows, 1), value, dtype=torch.float64) for name, value in rule.hyper.items()}
    for _ in range(25):
        gradient = torch.randn(rows, size, dtype=torch.float64, generator=generator)
        for row, (reference, optimizer) in enumerate(zip(references, torch_optimizers, strict=True)):
            reference.grad = gradient[row].clone()
            optimizer.step()
        rule.apply(parameters, gradient, slots, hyper, rates)
        torch.testing.assert_close(parameters, torch.stack([r.detach() for r in references]), rtol=1e-12, atol=1e-14)


def test_every_rule_is_compared_with_torch() -> None:
    assert {rule.name for rule, _, _ in RULES} == set(optimizers)


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
