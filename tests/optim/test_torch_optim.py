"""Layerwise rules as optimizers of modules, against the rules and timm."""

from __future__ import annotations

import importlib
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from fl_hydra.data.cifar100 import import_torchvision
from fl_hydra.optim import LAMB, LARS
from fl_hydra.optim.base import Optimizer
from fl_hydra.optim.lamb import LAMBRule
from fl_hydra.optim.lars import LARSRule
from fl_hydra.training.layout import Layout
from tests.support.rules import close, numbers, random, zeros


class Net(nn.Module):
    """A convolution, a normalisation and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.normal, self.linear = nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Linear(16, 5)
        self.to(torch.float64)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(self.normal(self.conv(images)).relu().flatten(1))  # type: ignore[no-any-return]


def backward(net: nn.Module, t: int) -> Tensor:
    """Gradients of batch t."""
    net.zero_grad()
    loss = nn.functional.cross_entropy(net(random(8, 3, 4, 4, seed=t)), torch.arange(8) % 5)
    loss.backward()
    return loss.detach()


WRAPPERS = [(LARS, LARSRule(weight_decay=0.1, trust=0.1), {"weight_decay": 0.1, "trust": 0.1}), (LAMB, LAMBRule(), {})]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("torch_class", "rule", "settings"), WRAPPERS)
def test_wrapper_is_the_rule_on_a_module(torch_class: Any, rule: Optimizer, settings: dict[str, Any], memory_format: Any) -> None:
    """Under a schedule that begins at 0, and with a convolution in channels_last, whose parameters are not contiguous."""
    net = Net()
    net.to(memory_format=memory_format)  # type: ignore[call-overload]
    layout = Layout.of(net)
    row = layout.flat(net.parameters()).detach()[None]
    slots, hyper = zeros(rule, 1, layout.size), numbers(rule, 1)
    optimizer = torch_class(net.parameters(), lr=0.5, **settings)
    schedule = LambdaLR(optimizer, lambda t: t / 4)
    for t in range(6):
        backward(net, t)
        gradient = layout.flat(parameter.grad for parameter in net.parameters() if parameter.grad is not None)
        optimizer.step()
        rule.step(row, gradient[None].clone(), slots, hyper, torch.full((1, 1), 0.5 * t / 4, dtype=torch.float64), layout.layers)
        schedule.step()
        close(layout.flat(net.parameters()).detach()[None], row)
        assert torch.equal(layout.flat(parameter.grad for parameter in net.parameters() if parameter.grad is not None), gradient)


@pytest.mark.parametrize(("torch_class", "rule", "settings"), WRAPPERS)
def test_wrapper_resumes_bitwise(torch_class: Any, rule: Optimizer, settings: dict[str, Any]) -> None:
    def made(net: Net) -> tuple[torch.optim.Optimizer, LambdaLR]:
        optimizer = torch_class([{"params": net.conv.parameters(), "lr": 0.1}, {"params": net.linear.parameters()}], **settings)
        return optimizer, LambdaLR(optimizer, lambda t: 1 / (1 + t))

    def train(steps: range, net: nn.Module, optimizer: torch.optim.Optimizer, schedule: LambdaLR) -> None:
        for t in steps:
            backward(net, t)
            optimizer.step()
            schedule.step()

    net = Net()
    optimizer, schedule = made(net)
    train(range(4), net, optimizer, schedule)
    file = io.BytesIO()
    torch.save([net.state_dict(), optimizer.state_dict(), schedule.state_dict()], file)
    file.seek(0)
    train(range(4, 8), net, optimizer, schedule)

    resumed = Net()
    parts: list[Any] = [resumed, *made(resumed)]
    for part, saved in zip(parts, torch.load(file), strict=True):
        part.load_state_dict(saved)
    train(range(4, 8), *parts)
    for name, value in net.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


@pytest.mark.parametrize(("torch_class", "rule", "settings"), WRAPPERS)
def test_groups_of_a_wrapper_are_wrappers_of_their_own(torch_class: Any, rule: Optimizer, settings: dict[str, Any]) -> None:
    together, apart = Net(), Net()
    own: list[dict[str, Any]] = [{"lr": 0.1, "weight_decay": 0.0}, {"lr": 0.02, "adapt": True}, {"lr": 0.3, "adapt": False}]
    groups = [{"params": list(part.parameters()), **options} for part, options in zip(together.children(), own, strict=True)]
    one = torch_class(groups[:2], **settings)
    one.add_param_group(groups[2])
    several = [torch_class(part.parameters(), **settings | options) for part, options in zip(apart.children(), own, strict=True)]
    for t in range(3):
        loss = one.step(lambda t=t: backward(together, t))
        assert loss == backward(apart, t)
        for optimizer in several:
            optimizer.step()
    for name, value in together.state_dict().items():
        assert torch.equal(value, apart.state_dict()[name]), name


def test_adapt_overrides_what_dimensions_say() -> None:
    matrix, bias = random(4, 5), random(7, seed=2)
    gradients = random(4, 5, seed=3), random(7, seed=4)
    for adapt, adapted in ((None, (True, False)), (True, (True, True)), (False, (False, False))):
        parameters = [nn.Parameter(value.clone()) for value in (matrix, bias)]
        plain = [nn.Parameter(value.clone()) for value in (matrix, bias)]
        for parameter, other, gradient in zip(parameters, plain, gradients, strict=True):
            parameter.grad, other.grad = gradient.clone(), gradient.clone()
        LAMB(parameters, lr=0.1, adapt=adapt).step()
        torch.optim.Adam(plain, lr=0.1, eps=1e-6).step()
        for parameter, other, before, is_adapted in zip(parameters, plain, (matrix, bias), adapted, strict=True):
            if is_adapted:
                close((parameter.detach() - before).norm(), 0.1 * before.norm())
            else:
                close(parameter.detach(), other.detach())


def test_wrapper_refuses_half_precision_and_skips_what_has_no_gradient() -> None:
    with pytest.raises(TypeError, match="needs float32 or float64 parameters"):
        LAMB([nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))])
    idle = nn.Parameter(torch.ones(2, 2))
    optimizer = LARS([idle])
    optimizer.step()
    assert idle.eq(1).all() and not optimizer.state
    with pytest.raises(TypeError, match="needs float32 or float64 parameters"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2, dtype=torch.float16))]})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize(
    ("name", "torch_class", "settings"), [("Lamb", LAMB, {"max_grad_norm": None}), ("Lars", LARS, {"momentum": 0.9, "eps": 0.0})]
)
def test_wrapper_is_timms(name: str, torch_class: Any, settings: dict[str, Any]) -> None:
    """timm adapts what is decayed, and has the rate outside the velocity, which is the same while it does not change."""
    import_torchvision("torchvision")  # which timm imports
    timm_class = getattr(importlib.import_module("timm.optim"), name)
    ours, theirs = Net(), Net()
    weights = [parameter for parameter in theirs.parameters() if parameter.dim() > 1]
    others = [parameter for parameter in theirs.parameters() if parameter.dim() <= 1]
    groups = [{"params": weights, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    one, other = torch_class(ours.parameters(), lr=0.05, weight_decay=0.1), timm_class(groups, lr=0.05, **settings)
    for t in range(10):
        for net, optimizer in ((ours, one), (theirs, other)):
            backward(net, t)
            optimizer.step()
        close(ours.state_dict(), theirs.state_dict())
