"""LARS and LAMB for any module's parameters: one-row wrappers of the row rules."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from fl_hydra.optim.base import Layers, Optimizer
from fl_hydra.optim.lamb import LAMBRule
from fl_hydra.optim.lars import LARSRule


class RuleOptimizer(torch.optim.Optimizer, ABC):
    """A row rule as an optimizer of PyTorch: each parameter is a row of its own with one layer.

    Every group has its own hyper-parameters and `adapt`: whether its parameters are adapted and decayed. By default (None), only those
    with more than one dimension are, which excludes biases and the parameters of normalisations.

    Raises:
        UserError: a hyper-parameter is out of range.
        TypeError: a parameter is neither float32 nor float64, so its state could not be kept exactly.
    """

    @abstractmethod
    def rule(self, group: dict[str, Any], lr: float) -> Optimizer:
        """The rule with a group's hyper-parameters, and this learning rate."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        group = self.defaults | param_group
        self.rule(group, float(group["lr"]))
        super().add_param_group(param_group)
        for parameter in self.param_groups[-1]["params"]:
            if parameter.dtype not in (torch.float32, torch.float64):
                self.param_groups.pop()
                raise TypeError(f"{type(self).__name__} needs float32 or float64 parameters, not {parameter.dtype}; compute under autocast")

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Step every parameter that has a gradient; the gradients are left unchanged.

        Args:
            closure: computes the gradients again and returns the loss, which is then returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            rule = self.rule(group, lr=1.0)  # a schedule may have set the group's rate to 0, which rules refuse
            numbers: dict[tuple[torch.dtype, torch.device], dict[str, Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if parameter.grad.is_sparse:
                    raise RuntimeError(f"{type(self).__name__} does not support sparse gradients")
                kind = parameter.dtype, parameter.device
                if kind not in numbers:  # filled, not copied, so that no step waits for the device
                    numbers[kind] = {
                        name: parameter.new_ones(1, 1).mul_(value) for name, value in (rule.hyper | {"lr": group["lr"]}).items()
                    }
                self._move(parameter, rule, numbers[kind], group["adapt"])
        return loss

    def _move(self, parameter: Tensor, rule: Optimizer, numbers: dict[str, Tensor], adapt: bool | None) -> None:
        """One step of one parameter, as a row [1, numel]; the row of a parameter that is not contiguous is a copy."""
        assert parameter.grad is not None
        state = self.state[parameter]
        if not state:
            for name, width in rule.slots.items():
                state[name] = parameter.new_zeros(parameter.shape if width == "row" else (1, 1))
        layers = Layers((parameter.numel(),), (parameter.dim() > 1 if adapt is None else adapt,))
        row = parameter.reshape(1, -1)
        gradient = parameter.grad.clone(memory_format=torch.contiguous_format).view(1, -1)
        rule.apply(row, gradient, {name: slot.view(1, -1) for name, slot in state.items()}, numbers, numbers["lr"], layers)
        if not parameter.is_contiguous():
            parameter.copy_(row.view(parameter.shape))


class LARS(RuleOptimizer):
    """LARS as :class:`LARSRule` has it: the learning rate inside the velocity, no clipping of the trust ratio.

    Args:
        params: parameters, or groups of them.
        lr: a weight's first step has the length lr * trust * |w|.
        trust: the trust coefficient.
        momentum: of the velocity.
        weight_decay: coupled, inside the trust ratio; of adapted parameters only.
        adapt: see :class:`RuleOptimizer`.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = LARSRule.lr,
        *,
        trust: float = LARSRule.trust,
        momentum: float = LARSRule.momentum,
        weight_decay: float = LARSRule.weight_decay,
        adapt: bool | None = None,
    ) -> None:
        super().__init__(params, {"lr": lr, "trust": trust, "momentum": momentum, "weight_decay": weight_decay, "adapt": adapt})

    def rule(self, group: dict[str, Any], lr: float) -> LARSRule:
        return LARSRule(lr=lr, trust=group["trust"], momentum=group["momentum"], weight_decay=group["weight_decay"])


class LAMB(RuleOptimizer):
    """LAMB as :class:`LAMBRule` has it: with bias correction, neither the trust ratio nor the gradient clipped.

    Args:
        params: parameters, or groups of them.
        lr: every step of a weight has the length lr * |w|.
        betas: of the moving averages of the gradient and of its square.
        eps: added to the square root of the latter.
        weight_decay: decoupled from the moments, inside the trust ratio; of adapted parameters only.
        adapt: see :class:`RuleOptimizer`.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = LAMBRule.lr,
        *,
        betas: tuple[float, float] = (LAMBRule.beta1, LAMBRule.beta2),
        eps: float = LAMBRule.eps,
        weight_decay: float = LAMBRule.weight_decay,
        adapt: bool | None = None,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "adapt": adapt})

    def rule(self, group: dict[str, Any], lr: float) -> LAMBRule:
        beta1, beta2 = group["betas"]
        return LAMBRule(lr=lr, beta1=beta1, beta2=beta2, eps=group["eps"], weight_decay=group["weight_decay"])
