"""Rows of random numbers for optimizers' rules."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fl_hydra.optim.base import Optimizer


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def zeros(rule: Optimizer, rows: int, size: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Slots before the first step."""
    return {name: torch.zeros(rows, size if full else 1, dtype=dtype) for name, full in rule.slots.items()}


def numbers(rule: Optimizer, rows: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    return {name: torch.full((rows, 1), value, dtype=dtype) for name, value in rule.hyper.items()}


def close(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-14)
