"""Row rules against torch.optim and formulas."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fl_hydra.errors import UserError
from fl_hydra.optim import LAMB, LARS
from fl_hydra.optim.adagrad import Adadelta, Adagrad, RMSprop
from fl_hydra.optim.adam import Adam, Adamax, NAdam, RAdam
from fl_hydra.optim.adamw import AdamW
from fl_hydra.optim.base import Layers, Optimizer, optimizers
from fl_hydra.optim.lamb import LAMBRule
from fl_hydra.optim.lars import LARSRule
from fl_hydra.optim.sgdm import SGDM
from tests.support.capture import Capturable
from tests.support.make import config
from tests.support.rules import close, numbers, random, zeros

BETAS: dict[str, Any] = {"betas": (0.8, 0.95)}
MOMENTS: dict[str, Any] = {"beta1": 0.8, "beta2": 0.95}
RULES: list[tuple[Optimizer, type[torch.optim.Optimizer], dict[str, Any]]] = [
    (SGDM(momentum=0.0, weight_decay=1e-2), torch.optim.SGD, {"weight_decay": 1e-2}),
    (SGDM(momentum=0.9, weight_decay=1e-2), torch.optim.SGD, {"momentum": 0.9, "weight_decay": 1e-2}),
    (SGDM(momentum=0.9, nesterov=True), torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    (Adam(), torch.optim.Adam, {}),
    (Adam(weight_decay=0.1, **MOMENTS), torch.optim.Adam, {"weight_decay": 0.1, **BETAS}),
    (AdamW(weight_decay=0.1, **MOMENTS), torch.optim.AdamW, {"weight_decay": 0.1, **BETAS}),
    (AdamW(weight_decay=0.0), torch.optim.AdamW, {"weight_decay": 0.0}),
    (NAdam(), torch.optim.NAdam, {}),
    (NAdam(weight_decay=0.1, momentum_decay=0.1, **MOMENTS), torch.optim.NAdam, {"weight_decay": 0.1, "momentum_decay": 0.1, **BETAS}),
    (RAdam(beta2=0.9), torch.optim.RAdam, {"betas": (0.9, 0.9)}),
    (RAdam(weight_decay=0.1, **MOMENTS), torch.optim.RAdam, {"weight_decay": 0.1, **BETAS}),
    (RAdam(beta2=0.6), torch.optim.RAdam, {"betas": (0.9, 0.6)}),  # never rectified: rho stays below 4
    (Adamax(), torch.optim.Adamax, {}),
    (Adamax(weight_decay=0.1, **MOMENTS), torch.optim.Adamax, {"weight_decay": 0.1, **BETAS}),
    (Adagrad(), torch.optim.Adagrad, {}),
    (
        Adagrad(weight_decay=0.1, lr_decay=0.1, initial_accumulator_value=0.5),
        torch.optim.Adagrad,
        {"weight_decay": 0.1, "lr_decay": 0.1, "initial_accumulator_value": 0.5},
    ),
    (RMSprop(), torch.optim.RMSprop, {}),
    (RMSprop(alpha=0.9, centered=True), torch.optim.RMSprop, {"alpha": 0.9, "centered": True}),
    (
        RMSprop(weight_decay=0.1, momentum=0.9, centered=True),
        torch.optim.RMSprop,
        {"weight_decay": 0.1, "momentum": 0.9, "centered": True},
    ),
    (Adadelta(), torch.optim.Adadelta, {}),
    (Adadelta(weight_decay=0.1, rho=0.8), torch.optim.Adadelta, {"weight_decay": 0.1, "rho": 0.8}),
]

LAYERS = Layers((12, 3, 20, 4, 6), (True, False, True, False, True))
"""Two weights with their biases, and a weight without."""

RATES = torch.tensor([[0.1], [0.01], [0.003]], dtype=torch.float64)


def first_step(rule: Optimizer, parameters: Tensor, gradient: Tensor, lr: float = 1.0, layers: Layers = LAYERS) -> tuple[Tensor, ...]:
    """What one step adds to each tensor of `layers` in parameters [rows, P]."""
    rows, size = parameters.shape
    moved = parameters.clone()
    rule.step(moved, gradient.clone(), zeros(rule, rows, size), numbers(rule, rows), torch.full((rows, 1), lr, dtype=torch.float64), layers)
    return (moved - parameters).split_with_sizes(layers.sizes, dim=1)


def norm(rows: Tensor) -> Tensor:
    return rows.square().sum(1).sqrt()


@pytest.fixture
def counts_in_double() -> Iterator[None]:
    """torch.optim keeps scalars, such as NAdam's product, in the default precision."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(("rule", "torch_class", "settings"), RULES)
@pytest.mark.usefixtures("counts_in_double")
def test_rule_is_torch_optim_step_by_step_in_every_row(rule: Optimizer, torch_class: Any, settings: dict[str, Any]) -> None:
    """Three rows with rates of their own: each follows torch.optim as if it were alone."""
    rows, size = 3, 20
    parameters = random(rows, size)
    references = [parameters[row].clone().requires_grad_() for row in range(rows)]
    torch_optimizers = [torch_class([reference], lr=float(rate), **settings) for reference, rate in zip(references, RATES, strict=True)]
    slots, hyper = zeros(rule, rows, size), numbers(rule, rows)
    for t in range(25):
        gradient = random(rows, size, seed=100 + t)
        for row, (reference, optimizer) in enumerate(zip(references, torch_optimizers, strict=True)):
            reference.grad = gradient[row].clone()
            optimizer.step()
        rule.step(parameters, gradient, slots, hyper, RATES, Layers((size,), (True,)))
        close(parameters, torch.stack([r.detach() for r in references]))


def test_defaults_are_those_of_torch() -> None:
    for name in ("adam", "nadam", "radam", "adamax", "adagrad", "rmsprop", "adadelta", "adamw"):
        rule = optimizers[name]()
        torch_class = next(torch_class for other, torch_class, _ in RULES if other.name == name)
        defaults = torch_class([torch.zeros(1)]).defaults  # type: ignore[call-arg]
        defaults |= dict(zip(("beta1", "beta2"), defaults.get("betas", ()), strict=False))
        own = rule.hyper | {"lr": rule.lr}
        assert own == {key: value for key, value in defaults.items() if key in own}


def test_radam_keeps_its_digits_in_single_precision() -> None:
    """rho is the difference of two numbers near 2000: with beta2 ** t as it is, the first rectified steps are 0.2 % off."""
    rule, steps = RAdam(), []
    single = numbers(rule, 1, torch.float32)
    for dtype in (torch.float32, torch.float64):
        slots, hyper = zeros(rule, 1, 5, dtype), {name: value.to(dtype) for name, value in single.items()}  # the same numbers in both
        for t in range(10):
            parameters = torch.zeros(1, 5, dtype=dtype)
            rule.step(parameters, random(1, 5, seed=t).to(dtype), slots, hyper, RATES[:1].to(dtype), Layers((5,), (True,)))
            steps.append(parameters.double())
    torch.testing.assert_close(steps[:10], steps[10:], rtol=2e-4, atol=0)


def lars_formula(w: Tensor, g: Tensor, state: dict[str, Tensor], lr: float, weight: bool) -> Tensor:
    """You et al. 2017, algorithm 1, of one tensor: what a step makes of w."""
    rule = LAYERWISE["lars"]
    assert isinstance(rule, LARSRule)
    local, decay = 1.0, 0.0
    if weight:
        decay = rule.weight_decay
        length, slope = float(w.square().sum()) ** 0.5, float(g.square().sum()) ** 0.5
        local = rule.trust * length / (slope + decay * length) if length and slope else 1.0
    state["v"] = rule.momentum * state.get("v", 0 * w) + lr * local * (g + decay * w)
    return w - state["v"]


def lamb_formula(w: Tensor, g: Tensor, state: dict[str, Tensor], lr: float, weight: bool) -> Tensor:
    """You et al. 2020, algorithm 2, of one tensor: what a step makes of w."""
    rule = LAYERWISE["lamb"]
    assert isinstance(rule, LAMBRule)
    state["t"] = state.get("t", torch.zeros((), dtype=torch.float64)) + 1
    state["m"] = rule.beta1 * state.get("m", 0 * w) + (1 - rule.beta1) * g
    state["v"] = rule.beta2 * state.get("v", 0 * w) + (1 - rule.beta2) * g**2
    r = state["m"] / (1 - rule.beta1 ** state["t"]) / ((state["v"] / (1 - rule.beta2 ** state["t"])) ** 0.5 + rule.eps)
    if not weight:
        return w - lr * r
    u = r + rule.weight_decay * w
    length, slope = float(w.square().sum()) ** 0.5, float(u.square().sum()) ** 0.5
    return w - lr * (length / slope if length and slope else 1.0) * u


LAYERWISE: dict[str, Optimizer] = {"lars": LARSRule(trust=0.02, weight_decay=0.1), "lamb": LAMBRule(weight_decay=0.1, beta2=0.95)}
FORMULAS = {"lars": lars_formula, "lamb": lamb_formula}


@pytest.mark.parametrize("name", list(LAYERWISE))
def test_layerwise_rule_is_its_formula_in_every_layer_of_every_row(name: str) -> None:
    """Rates change from step to step and row to row, so that it matters where they enter; a layer of row 1 is zero at first."""
    rule, rows, size = LAYERWISE[name], 3, sum(LAYERS.sizes)
    parameters = random(rows, size)
    parameters[1, 15:35] = 0
    slots, hyper = zeros(rule, rows, size), numbers(rule, rows)
    expected = [[piece.clone() for piece in row.split_with_sizes(LAYERS.sizes)] for row in parameters]
    states: list[list[dict[str, Tensor]]] = [[{} for _ in LAYERS.sizes] for _ in range(rows)]
    for t in range(20):
        gradient, lr = random(rows, size, seed=100 + t), RATES * (1 + t % 3)
        for row in range(rows):
            for i, g in enumerate(gradient[row].split_with_sizes(LAYERS.sizes)):
                expected[row][i] = FORMULAS[name](expected[row][i], g, states[row][i], float(lr[row]), LAYERS.weights[i])
        rule.step(parameters, gradient, slots, hyper, lr, LAYERS)
        close(parameters, torch.stack([torch.cat(row) for row in expected]))


def test_every_rule_is_compared_with_an_oracle() -> None:
    assert {rule.name for rule, _, _ in RULES} | set(FORMULAS) == set(optimizers)


@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e3])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_lamb_moves_each_weight_by_the_rate_times_its_norm(scale: float, weight_decay: float) -> None:
    parameters, gradient = random(3, 45), scale * random(3, 45, seed=2)
    rule = LAMBRule(weight_decay=weight_decay)
    lengths = parameters.split_with_sizes(LAYERS.sizes, dim=1), first_step(rule, parameters, gradient, lr=0.02)
    for before, step, weight, g in zip(*lengths, LAYERS.weights, gradient.split_with_sizes(LAYERS.sizes, dim=1), strict=True):
        if weight:
            close(norm(step), 0.02 * norm(before))
        else:
            torch.testing.assert_close(step, -0.02 * g / (g.abs() + rule.eps), rtol=1e-9, atol=0)


def test_lars_first_step_is_the_rate_times_the_trust_times_the_norm() -> None:
    parameters, gradient = random(3, 45), random(3, 45, seed=2)
    pieces = [tensor.split_with_sizes(LAYERS.sizes, dim=1) for tensor in (parameters, gradient)]
    for decay in (0.0, 0.1):
        steps = first_step(LARSRule(trust=0.01, weight_decay=decay), parameters, gradient, lr=3.0)
        for w, g, step, weight in zip(*pieces, steps, LAYERS.weights, strict=True):
            shortened = norm(g + decay * w) / (norm(g) + decay * norm(w))
            close(*((norm(step), 3.0 * 0.01 * norm(w) * shortened) if weight else (step, -3.0 * g)))


def test_lars_without_decay_is_unmoved_by_the_scale_of_gradients() -> None:
    rule, ends = LARSRule(weight_decay=0.0), []
    for scale in (1.0, 10.0):
        parameters, slots = random(3, 45), zeros(rule, 3, 45)
        for t in range(5):
            rule.step(parameters, scale * random(3, 45, seed=100 + t), slots, numbers(rule, 3), RATES, LAYERS)
        ends.append(
            [piece for piece, weight in zip(parameters.split_with_sizes(LAYERS.sizes, dim=1), LAYERS.weights, strict=True) if weight]
        )
    close(ends[0], ends[1])


def test_trust_ratio_is_one_where_a_norm_is_zero() -> None:
    one = Layers((6,), (True,))
    zero, vector = torch.zeros(2, 6, dtype=torch.float64), random(2, 6)
    for decay in (0.0, 0.1):
        lars, lamb = LARSRule(weight_decay=decay), LAMBRule(weight_decay=decay)
        close(first_step(lars, zero, vector, 0.5, one)[0], -0.5 * vector)
        close(first_step(lars, vector, zero, 0.5, one)[0], -0.5 * decay * vector)
        torch.testing.assert_close(
            first_step(lamb, zero, vector, 0.5, one)[0], -0.5 * vector / (vector.abs() + lamb.eps), rtol=1e-9, atol=0
        )
        close(first_step(lamb, vector, zero, 0.5, one)[0], -0.5 * vector if decay else zero)  # decay alone: u = wd w, |w| / |u| = 1 / wd
    lonely = Layers((2, 4), (False, False))  # biases alone
    close(torch.cat(first_step(LARSRule(), vector, vector, 0.5, lonely), dim=1), -0.5 * vector)
    assert all(step.isfinite().all() for step in first_step(LAMBRule(), vector, vector, 0.5, lonely))


@pytest.mark.parametrize("name", list(optimizers))
def test_rows_are_independent(name: str) -> None:
    """Rows with rates and hyper-parameters of their own take the steps that each takes alone; nothing is read back meanwhile."""
    rule = optimizers[name](weight_decay=0.1, clip=4.0)
    together, slots, hyper = random(3, 45), zeros(rule, 3, 45), numbers(rule, 3)
    for value in hyper.values():
        value.mul_(torch.tensor([[1.0], [0.9], [0.5]]))
    alone = [together[row : row + 1].clone() for row in range(3)]
    own_slots = [zeros(rule, 1, 45) for _ in range(3)]
    for t in range(8):
        gradient = random(3, 45, seed=100 + t)
        for row in range(3):
            mine, part = slice(row, row + 1), gradient[row : row + 1].clone()
            rule.step(alone[row], part, own_slots[row], {key: value[mine] for key, value in hyper.items()}, RATES[mine], LAYERS)
        with Capturable():
            rule.step(together, gradient, slots, hyper, RATES, LAYERS)
    close(together, torch.cat(alone))


@pytest.mark.parametrize("clip", [1e-3, 1.0, 6.5, 1e3])
def test_clipping_is_torchs_in_each_row(clip: float) -> None:
    gradient = random(3, 45) * torch.tensor([[0.1], [1.0], [10.0]], dtype=torch.float64)
    (step,) = first_step(SGDM(momentum=0.0, clip=clip), random(3, 45, seed=2), gradient, 1.0, Layers((45,), (True,)))
    for row in range(3):
        alone = nn.Parameter(torch.zeros(45, dtype=torch.float64))
        alone.grad = gradient[row].clone()
        nn.utils.clip_grad_norm_([alone], clip)
        close(-step[row], alone.grad)


def test_runs_pack_where_both_clip_or_neither() -> None:
    assert SGDM(clip=1.0).form == SGDM(clip=2.0).form != SGDM().form
    assert "clip" not in SGDM().hyper


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SGDM(clip=0.0), "optimizer.clip=0.0: the largest norm of a gradient must be greater than 0"),
        (lambda: SGDM(clip=math.inf), "optimizer.clip=inf"),
        (lambda: SGDM(clip=math.nan), "optimizer.clip=nan"),
        (lambda: LARSRule(trust=0.0), "optimizer.trust=0.0: must be greater than 0"),
        (lambda: LAMBRule(beta2=1.0), "optimizer.beta2=1.0: must be at least 0 and below 1"),
        (lambda: Adagrad(lr_decay=-1.0), "optimizer.lr_decay=-1.0: must be 0 or more"),
        (lambda: LAMB([torch.zeros(1)], eps=0.0), "optimizer.eps=0.0: must be greater than 0"),
        (lambda: LARS([torch.zeros(1)], lr=-1.0), "optimizer.lr=-1.0: the learning rate must be greater than 0"),
    ],
)
def test_values_out_of_range_are_refused(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message.replace(".", r"\.")):
        make()


@pytest.mark.parametrize("name", list(optimizers))
def test_every_rule_can_be_chosen_and_its_option_says_its_defaults(name: str) -> None:
    chosen = config(f"optimizer={name}").optimizer
    assert type(chosen) is optimizers[name]
    if name != "sgdm":
        assert chosen == optimizers[name]()


def test_rules_are_listed_without_torch() -> None:
    code = "import sys; from fl_hydra.optim.base import optimizers; assert 'lamb' in optimizers and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
