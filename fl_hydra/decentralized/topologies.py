"""Who talks to whom: communication graphs of K workers and the matrices by which they average.

Two of the graphs are directed: `directed_exponential`, which is fixed, and `one_peer_exponential`, which changes from exchange to exchange.
The others are undirected and fixed.
"""

from __future__ import annotations

from functools import lru_cache
from math import isqrt

import numpy as np
from numpy.typing import NDArray

from fl_hydra.arrays import Indices
from fl_hydra.errors import require

Floats = NDArray[np.float64]

TOPOLOGIES = ("ring", "exponential", "directed_exponential", "one_peer_exponential", "torus", "complete", "star")
DIRECTED = ("directed_exponential", "one_peer_exponential")
"""Topologies whose links go one way."""


def check(topology: str, K: int) -> None:
    """Refuse a topology that does not exist, or a number of workers that it cannot have.

    Raises:
        UserError: naming the topologies there are, or the nearest K that work.
    """
    require(topology in TOPOLOGIES, f"algorithm.topology={topology}: choose {', '.join(TOPOLOGIES[:-1])} or {TOPOLOGIES[-1]}")
    require(K >= 1, f"K={K}: a {topology} needs at least one worker; choose K=1 or more")
    if topology == "torus" and K > 1 and _torus_rows(K) == 1:
        # Both neighbours of a prime above 3 are even, so not prime. For K=2 and 3, 4 is suggested: one worker is hardly a torus.
        nearest = "K=4" if K < 4 else f"K={K - 1} or K={K + 1}"
        require(False, f"K={K}: a torus needs rows and columns of at least 2 workers and {K} is prime; choose {nearest}")


def mixing_matrix(topology: str, K: int, exchange: int = 0) -> Floats:
    """The weights W of one exchange, x_i <- sum_j W[i, j] x_j: non-negative and doubly stochastic, so that the mean is preserved.

    Undirected graphs have Metropolis-Hastings weights, W[i, j] = 1 / (1 + max(degree_i, degree_j)) on edges and the rest on the diagonal
    (Xiao, Boyd & Kim 2007). W is symmetric: 1 / (degree + 1) on a regular graph (1/3 on a ring), 11^T / K on a complete one.

    directed_exponential, the static exponential graph of Ying et al. 2021 (arXiv 2110.13363, equation 5): every worker k receives from
    k - 2^i for all 2^i < K; these weights and its own are 1 / (1 + ceil(log2 K)). The second largest singular value of W, which is the
    modulus of an eigenvalue, is 1 - 2 / (1 + ceil(log2 K)) for even K, and smaller for odd K (their proposition 1). `exponential` sends
    both ways, to nearly twice as many workers.

    one_peer_exponential (same paper, equation 7): at exchange t every worker k receives from one peer, k - 2^(t mod ceil(log2 K)), and
    W = (I + P) / 2 with that cyclic shift P. Both matrices are doubly stochastic for every K because shifts are permutations.
    If K is a power of 2, log2 K consecutive exchanges give the exact mean; for other K they do not.

    Args:
        topology: one of `TOPOLOGIES`.
        K: number of workers.
        exchange: number of the exchange from the beginning of training; only one_peer_exponential depends on it.

    Returns:
        float64 [K, K], read-only and shared between calls.

    Raises:
        UserError: see :func:`check`.
    """
    return _mixing_matrix(topology, K, exchange % period(topology, K))


@lru_cache(maxsize=64)
def _mixing_matrix(topology: str, K: int, phase: int) -> Floats:
    if topology == "one_peer_exponential":
        # With one worker the shift is the identity, and so is W.
        W = (np.eye(K) + np.roll(np.eye(K), 2**phase, axis=0)) / 2
    elif topology == "directed_exponential":
        shifts = [0, *(2**i for i in range((K - 1).bit_length()))]
        W = np.sum([np.roll(np.eye(K), shift, axis=0) for shift in shifts], axis=0) / len(shifts)
    else:
        connected = adjacency(topology, K) > 0
        degrees = connected.sum(1)
        W = connected / (1.0 + np.maximum.outer(degrees, degrees))
        W[np.diag_indices(K)] = 1 - W.sum(1)
        if degrees.min() == K - 1:
            W[:] = 1 / K  # a complete graph: equal weights, without the diagonal's rounding error
    W.setflags(write=False)
    return W


def period(topology: str, K: int) -> int:
    """Number of exchanges after which the mixing matrices repeat: 1 for a fixed graph, ceil(log2 K) for one_peer_exponential."""
    check(topology, K)
    return max(1, (K - 1).bit_length()) if topology == "one_peer_exponential" else 1


def adjacency(topology: str, K: int) -> Indices:
    """Number of links between each two workers: symmetric int64 [K, K], zero on the diagonal.

    The entries are 0 or 1, and 2 where an exponential graph reaches a neighbour twice: worker k's neighbours are k + 2^p and k - 2^p for
    all 2^p < K, and for K = 16, k + 8 and k - 8 are the same worker. A worker that draws one of its links at random meets that neighbour
    twice as often (see :func:`fl_hydra.decentralized.clocks.edge_rates`); mixing matrices only ask whether there is a link.
    In a torus worker k sits in row k // columns and column k % columns, and a side of 2 has one edge, not two.

    Raises:
        UserError: see :func:`check`; also for a topology of `DIRECTED`, in which no two workers meet.
    """
    check(topology, K)
    require(
        topology not in DIRECTED,
        f"algorithm.topology={topology}: sends one way, so no two workers meet; "
        f"choose {', '.join(t for t in TOPOLOGIES[:-1] if t not in DIRECTED)} or {TOPOLOGIES[-1]}",
    )
    workers = np.arange(K)
    ways = np.zeros((K, K), np.int64)
    if topology == "ring":
        for step in (1, -1):
            ways[workers, (workers + step) % K] = 1
    elif topology == "exponential":
        for power in range((K - 1).bit_length()):
            for step in (2**power, -(2**power)):
                ways[workers, (workers + step) % K] += 1
    elif topology == "torus":
        columns = K // _torus_rows(K)
        row, column = np.divmod(workers, columns)
        for step in (1, -1):
            ways[workers, (workers + step * columns) % K] = 1
            ways[workers, row * columns + (column + step) % columns] = 1
    elif topology == "complete":
        ways[:] = 1
    else:
        ways[0, :] = ways[:, 0] = 1
    np.fill_diagonal(ways, 0)
    return ways


def edges(topology: str, K: int) -> list[tuple[int, int]]:
    """The pairs (i, j), i < j, of workers that may meet, in ascending order. The centre of a star is worker 0.

    Raises:
        UserError: see :func:`adjacency`.
    """
    return [(int(i), int(j)) for i, j in np.argwhere(np.triu(adjacency(topology, K)))]


def _torus_rows(K: int) -> int:
    """The largest divisor of K up to its square root, which makes the torus nearest to square; 1 for a prime."""
    return next(rows for rows in range(isqrt(K), 0, -1) if K % rows == 0)
