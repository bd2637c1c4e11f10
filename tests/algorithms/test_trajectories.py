"""Trajectories on two quadratics that a reader can check on paper.

Client A descends x^2 / 2 and client B 3 / 2 (x - 1)^2, at rate 1/2, from x = 0. Their mean has its minimum at 3/4.

    one step     A(x) = x - x / 2 = x / 2          B(x) = x - 3 (x - 1) / 2 = (3 - x) / 2
    two steps    A(A(x)) = x / 4                   B(B(x)) = (3 + x) / 4

All numbers are binary fractions that float64 holds, so they are compared for equality.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest

from tests.support.quadratics import Quadratics

SLOW = ("server.lr=1", "server.momentum=0.5")


def trajectory(*overrides: str, **parts: Any) -> list[Fraction]:
    """The model after each of three rounds."""
    return [Fraction(x) for x in Quadratics("optimizer.lr=0.5", *overrides, **parts).rounds(3)]


def fractions(text: str) -> list[Fraction]:
    return [Fraction(word) for word in text.split()]


@pytest.mark.parametrize(
    ("J", "expected"),
    [
        (1, "3/4 3/4 3/4"),  # x <- (x/2 + (3 - x)/2) / 2 = 3/4, wherever x was
        (2, "3/8 15/32 63/128"),  # x <- (x/4 + (3 + x)/4) / 2 = (3 + 2x) / 8, which ends at 1/2: local steps are biased
    ],
)
@pytest.mark.parametrize("method", ["algorithm=localsgd", "algorithm=fedavg C=1"])
def test_mean_of_equal_clients(method: str, J: int, expected: str) -> None:
    assert trajectory(*method.split(), f"J={J}") == fractions(expected)


@pytest.mark.parametrize(
    ("J", "expected"),
    [
        (1, "9/8 27/32 117/128"),  # x <- 1/4 x/2 + 3/4 (3 - x)/2 = (9 - 2x) / 8
        (2, "9/16 45/64 189/256"),  # x <- 1/4 x/4 + 3/4 (3 + x)/4 = (9 + 4x) / 16
    ],
)
def test_fedavg_weighs_clients_by_their_samples(J: int, expected: str) -> None:
    """B has three samples for each of A's."""
    assert trajectory("algorithm=fedavg", "C=1", f"J={J}", sizes=(100, 300)) == fractions(expected)


def test_fedavg_with_server_momentum() -> None:
    """With m = (3 + 2x) / 8, two steps:  u <- u/2 + (x - m),  x <- x - u.

    m = 3/8      u = -3/8                      x = 3/8
    m = 15/32    u = -6/32 - 3/32  = -9/32     x = 12/32 + 9/32  = 21/32
    m = 69/128   u = -18/128 + 15/128 = -3/128 x = 84/128 + 3/128 = 87/128
    """
    assert trajectory("algorithm=fedavg", "C=1", "J=2", *SLOW) == fractions("3/8 21/32 87/128")


def test_slowmo() -> None:
    """u <- u/2 + (x - m) / gamma,  x <- x - gamma u: the path of server momentum, with a buffer 1 / gamma = 2 times as large."""
    made = Quadratics("optimizer.lr=0.5", "algorithm=slowmo", "J=2", *SLOW)
    buffers, models = [], []
    for _ in range(3):
        models += made.rounds(1)
        buffers.append(float(made.run.state.server["momentum"][0, 0]))
    assert list(map(Fraction, models)) == fractions("3/8 21/32 87/128")
    assert list(map(Fraction, buffers)) == fractions("-3/4 -9/16 -3/64")


def test_nesterov_momentum_outside() -> None:
    """DiLoCo's outer step:  d = x - m,  u <- u/2 + d,  x <- x - (d + u/2) / 2, with plain SGD inside and m = (3 + 2x) / 8.

    m = 3/8       d = -3/8       u = -3/8                             x = (3/8 + 3/16) / 2 = 9/32
    m = 57/128    d = -21/128    u = -24/128 - 21/128 = -45/128       x = 9/32 + (21/128 + 45/256) / 2 = 231/512
    m = 999/2048  d = -75/2048   u = -360/2048 - 75/2048 = -435/2048  x = 231/512 + (75/2048 + 435/4096) / 2 = 4281/8192
    """
    assert trajectory("algorithm=diloco", "J=2", "server.lr=0.5", "server.momentum=0.5") == fractions("9/32 231/512 4281/8192")


@pytest.mark.parametrize(
    ("J", "expected"),
    [
        (1, "3/4 15/16 63/64"),  # x <- (x + (3 - x)/2) / 2 = (3 + x) / 4
        (2, "3/8 39/64 387/512"),  # x <- (x + (3 + x)/4) / 2 = (3 + 5x) / 8
    ],
)
def test_lookahead(J: int, expected: str) -> None:
    """B alone, whose slow weights go half of the way."""
    assert trajectory("algorithm=lookahead", f"J={J}", "server.lr=0.5", a=(3,), b=(1,)) == fractions(expected)


@pytest.mark.parametrize("J", [1, 2])
def test_gossip_of_two(J: int) -> None:
    """Each takes over half of the other's model after every step, so each step ends at (x/2 + (3 - x)/2) / 2 = 3/4, and J adds no bias."""
    assert trajectory("algorithm=gossip", f"J={J}") == fractions("3/4 3/4 3/4")


def test_hierarchical_of_two_blocks() -> None:
    """A and B, and the same two moved by 2; two steps, the mean of each block, two steps, the mean of all.

    Two steps and a mean of a block: y = (3 + 2x) / 8, and, moved by 2, y' = 2 + (3 + 2 (x - 2)) / 8 = (15 + 2x) / 8.
    Again, and the mean of both: x <- (18 + 2 (y + y')) / 16 with y + y' = (18 + 4x) / 8, which is (45 + 2x) / 32.
    """
    path = trajectory("algorithm=hierarchical", "algorithm.blocks=2", "algorithm.J_b=2", "J=2", a=(1, 3, 1, 3), b=(0, 1, 2, 3))
    assert path == fractions("45/32 765/512 12285/8192")


@pytest.mark.parametrize(("policy", "expected"), [("keep", "3/4 9/16 33/64"), ("reset", "3/4 9/16 39/64"), ("average", "3/4 9/16 9/16")])
def test_momentum_of_workers(policy: str, expected: str) -> None:
    """Momentum 1/2 inside, two steps a round:  v <- v/2 + g,  x <- x - v/2.

    Round 1, from x = 0 and v = 0:
        A: g = 0 twice                            x = 0, v = 0
        B: v = -3, x = 3/2; v = -3/2 + 3/2 = 0    x = 3/2, v = 0                                        mean 3/4
    Round 2, from x = 3/4 and v = 0:
        A: v = 3/4, x = 3/8; v = 3/8 + 3/8        x = 0, v = 3/4
        B: v = -3/4, x = 9/8; v = -3/8 + 3/8      x = 9/8, v = 0                                        mean 9/16
    Round 3, from x = 9/16; B, with v = 0: v = -21/16, x = 39/32; v = -21/32 + 21/32 = 0; x = 39/32
        keep, A with v = 3/4:   v = 15/16, x = 3/32; v = 15/32 + 3/32 = 9/16; x = -6/32                 mean 33/64
        reset, A with v = 0:    v = 9/16, x = 9/32; v = 9/32 + 9/32 = 9/16; x = 0                       mean 39/64
        average, both with v = 3/8:
            A: v = 3/16 + 9/16 = 3/4, x = 3/16; v = 3/8 + 3/16 = 9/16; x = -3/32
            B: v = 3/16 - 21/16 = -9/8, x = 9/8; v = -9/16 + 3/8 = -3/16; x = 39/32                     mean 36/64
    """
    inside = ("optimizer=sgdm", "optimizer.momentum=0.5", "optimizer.nesterov=false")
    assert trajectory("algorithm=localsgd", "J=2", *inside, f"algorithm.momentum={policy}") == fractions(expected)
