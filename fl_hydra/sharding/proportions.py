"""Draws that several shardings share: Dirichlet proportions that never underflow, and whole numbers in given proportions."""

from __future__ import annotations

import numpy as np

from fl_hydra.arrays import Indices, Reals
from fl_hydra.errors import require

LEAST, MOST = 1e-100, 1e9
"""No number of samples could tell a concentration below the first from 0, or one above the second from infinity."""


def require_alpha(name: str, alpha: float, zero: bool = False) -> None:
    """Check `sharding.alpha`; `zero`: whether the limit of concentration 0 is allowed.

    Raises:
        UserError: not a number in that range.
    """
    allowed = LEAST <= alpha <= MOST or (zero and alpha == 0)
    least = ("0 (one class for each client) or " if zero else "") + f"{LEAST:.0e} (lower is more skewed)"
    require(allowed, f"sharding.alpha={alpha:g}: the concentration of sharding={name} is from {least} to {MOST:.0e} (no skew)")


def log_dirichlet(rng: np.random.Generator, concentration: Reals) -> Reals:
    """Logarithms of Dirichlet proportions along the last axis.

    At small concentrations nearly all proportions underflow, but their logarithms do not, so the ratios among any subset are
    still right. Gamma(a) is Gamma(a + 1) U^(1/a).

    Args:
        rng: source of the draws.
        concentration: float64 [..., n], all above 0.

    Returns:
        float64 [..., n], whose exponentials sum to 1.
    """
    log_gamma = np.log(rng.standard_gamma(concentration + 1)) + np.log1p(-rng.random(concentration.shape)) / concentration
    return log_gamma - log_sum(log_gamma, -1)


def log_sum(logs: Reals, axis: int) -> Reals:
    """Logarithm of the sum of exponentials along an axis, which is kept with length 1."""
    most = logs.max(axis, keepdims=True)
    total: Reals = most + np.log(np.exp(logs - most).sum(axis, keepdims=True))
    return total


def in_proportion(rng: np.random.Generator, shares: Reals, totals: Indices) -> Indices:
    """Whole numbers in the given proportions: each is its real value rounded up or down, and equals it on average.

    Shares are laid end to end on a ruler of length `total`, marked at every whole number from a random start; each gets the
    marks that fall on it. (Rounding without the random start would favour some positions over others.)

    Args:
        rng: for the random starts.
        shares: float64 [n, K], rows sum to 1.
        totals: int64 [n].

    Returns:
        int64 [n, K], rows sum to `totals`.
    """
    marks = np.floor(shares.cumsum(1) * totals[:, None] + rng.random((len(totals), 1))).astype(np.int64)
    marks = np.minimum(marks, totals[:, None])
    marks[:, -1] = totals  # even if rounding made the sum of the shares not exactly 1
    return np.diff(marks, axis=1, prepend=0)
