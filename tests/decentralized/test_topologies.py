"""Graphs of workers and their mixing matrices."""

from __future__ import annotations

import re

import numpy as np
import pytest

from fl_hydra.algorithms.gossip import Gossip
from fl_hydra.decentralized.clocks import acid_constants, edge_rates
from fl_hydra.decentralized.topologies import DIRECTED, TOPOLOGIES, Floats, adjacency, check, edges, mixing_matrix, period
from fl_hydra.errors import UserError
from fl_hydra.training.fabric import Traffic
from tests.support.graphs import UNDIRECTED, admitted
from tests.support.make import experiment


def sent(topology: str, K: int, exchange: int = 0) -> Traffic:
    """What an exchange enters in the ledger, for models of one byte."""
    traffic = Traffic()
    Gossip().charge(traffic, mixing_matrix(topology, K, exchange), 1)
    return traffic


def messages(topology: str, K: int, exchange: int = 0) -> int:
    return sent(topology, K, exchange).messages


def degree(topology: str, K: int) -> int:
    return sent(topology, K).exchanges


def second_eigenvalue(W: Floats) -> float:
    """The largest modulus among the eigenvalues of a doubly stochastic W besides its 1; 0 for one worker."""
    # Subtracting 11^T / K turns the eigenvalue 1 of the vector of ones into 0 and leaves the others.
    return float(np.abs(np.linalg.eigvals(W - 1 / len(W))).max())


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_mixing_keeps_the_mean_and_reaches_consensus(topology: str) -> None:
    for K in admitted(topology):
        product = np.eye(K)
        for exchange in range(period(topology, K)):
            W = mixing_matrix(topology, K, exchange)
            assert W.shape == (K, K) and W.dtype == np.float64 and W.min() >= 0
            assert abs(W.sum(0) - 1).max() < 1e-12 and abs(W.sum(1) - 1).max() < 1e-12
            assert topology in DIRECTED or (W == W.T).all()
            assert W is mixing_matrix(topology, K, exchange + 3 * period(topology, K))
            assert messages(topology, K, exchange) == np.count_nonzero(W - np.diag(np.diag(W)))
            product = W @ product
        assert second_eigenvalue(product) < 1 - 1e-4  # connected: repeated exchanges contract
        assert not W.flags.writeable


def test_one_worker_is_alone_in_every_topology() -> None:
    for topology in TOPOLOGIES:
        assert mixing_matrix(topology, 1).tolist() == [[1.0]]
        assert degree(topology, 1) == messages(topology, 1) == second_eigenvalue(mixing_matrix(topology, 1)) == 0
    for topology in UNDIRECTED:
        assert edges(topology, 1) == [] and len(edge_rates(topology, 1)) == 0
        constants = acid_constants(topology, 1)
        assert (constants.eta, constants.alpha_tilde) == (0, 0.5)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_what_is_refused_names_what_works(topology: str) -> None:
    for K in range(-1, 65):
        if K in admitted(topology):
            check(topology, K)
            continue
        with pytest.raises(UserError, match=rf"^K={K}: .*choose K=\d+[^\n]*$") as refusal:
            check(topology, K)
        suggested = [int(k) for k in re.findall(r"K=(\d+)", str(refusal.value).split("choose")[1])]
        composite = [k for k in range(2, 80) if any(k % d == 0 for d in range(2, k))]
        for k in suggested:
            check(topology, k)
            if K > 1:
                assert abs(k - K) == min(abs(other - K) for other in composite)


def test_what_is_no_topology_and_what_has_no_edges() -> None:
    with pytest.raises(UserError, match=r"^algorithm\.topology=web: choose ring, exponential"):
        check("web", 4)
    for topology in DIRECTED:
        for refuse in (edges, edge_rates, acid_constants):
            with pytest.raises(
                UserError, match=rf"topology={topology}: sends one way, .*; choose ring, exponential, torus, complete or star$"
            ):
                refuse(topology, 4)
    with pytest.raises(UserError, match="rate"):
        acid_constants("ring", 4, rate=0.0)


def test_graphs_are_the_ones_their_names_say() -> None:
    assert edges("ring", 2) == [(0, 1)] and edges("ring", 4) == [(0, 1), (0, 3), (1, 2), (2, 3)]
    assert edges("star", 4) == [(0, 1), (0, 2), (0, 3)]
    assert len(edges("complete", 7)) == 21
    # 2 x 3: rows 0 1 2 and 3 4 5, rings of three, joined by three single edges.
    assert edges("torus", 6) == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 4), (2, 5), (3, 4), (3, 5), (4, 5)]
    assert edges("torus", 4) == [(0, 1), (0, 2), (1, 3), (2, 3)]
    assert {j for i, j in edges("exponential", 16) if i == 0} == {1, 2, 4, 8, 12, 14, 15}
    assert adjacency("exponential", 16)[0, [1, 8, 14, 3]].tolist() == [1, 2, 1, 0]
    degrees = {topology: degree(topology, 16) for topology in TOPOLOGIES}
    assert degrees == {
        "ring": 2,
        "exponential": 7,
        "directed_exponential": 4,
        "one_peer_exponential": 1,
        "torus": 4,
        "complete": 15,
        "star": 15,
    }
    assert messages("directed_exponential", 16) == 64 and messages("directed_exponential", 6) == 18
    assert messages("ring", 16) == 32 and messages("one_peer_exponential", 16, 3) == 16 and messages("star", 16) == 30
    for K in (2, 3):  # so small that they are all alike
        assert all((mixing_matrix(topology, K) == 1 / K).all() for topology in ("ring", "exponential", "complete"))


@pytest.mark.parametrize("n", [3, 4, 5, 8, 16, 33])
def test_ring_contracts_by_its_known_eigenvalue(n: int) -> None:
    W = mixing_matrix("ring", n)
    moduli = [abs(1 / 3 + 2 / 3 * np.cos(2 * np.pi * k / n)) for k in range(1, n)]
    assert second_eigenvalue(W) == pytest.approx(max(moduli), abs=1e-12)
    assert n == 3 or np.allclose(W[W > 0], 1 / 3, rtol=1e-12)
    wave = np.cos(2 * np.pi * np.arange(n) / n)  # the slowest way to disagree
    np.testing.assert_allclose(W @ wave, (1 / 3 + 2 / 3 * np.cos(2 * np.pi / n)) * wave, atol=1e-12)


def test_static_exponential_graph_is_that_of_its_paper() -> None:
    """Ying et al. 2021: who sends to whom, with which weights, and the second eigenvalue of their proposition 1."""
    W = mixing_matrix("directed_exponential", 6)
    assert [np.flatnonzero(row).tolist() for row in W[:2]] == [[0, 2, 4, 5], [0, 1, 3, 5]], "k hears of k - 1, k - 2 and k - 4"
    for K in range(1, 65):
        W, links = mixing_matrix("directed_exponential", K), int(np.ceil(np.log2(K)))
        assert set(np.unique(W[W > 0])) == {1 / (1 + links)}
        assert degree("directed_exponential", K) == links
        bound = 1 - 2 / (1 + links)
        largest = np.linalg.norm(W - 1 / K, 2)  # a circulant is normal: singular values are the moduli of eigenvalues
        assert largest == pytest.approx(second_eigenvalue(W), abs=1e-9)
        assert largest == pytest.approx(bound, abs=1e-9) if K % 2 == 0 else largest < bound or K == 1


def test_workers_do_not_meet_over_one_way_streets() -> None:
    for algorithm in ("a2cid2", "ad_psgd"):
        for topology in DIRECTED:
            with pytest.raises(UserError, match="sends one way, so no two workers meet"):
                experiment(f"algorithm={algorithm}", f"algorithm.topology={topology}", "K=4")


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_consensus_error_contracts_by_at_least_beta_squared(topology: str) -> None:
    W = mixing_matrix(topology, 12)
    x = np.random.default_rng(0).normal(size=(12, 5))
    before, after = (((y - y.mean(0)) ** 2).sum() for y in (x, W @ x))
    assert after <= second_eigenvalue(W) ** 2 * before * (1 + 1e-12) + 1e-28


def test_complete_graph_averages_exactly() -> None:
    for K in range(1, 65):
        assert (mixing_matrix("complete", K) == 1 / K).all()


@pytest.mark.parametrize("K", [1, 2, 4, 8, 32, 64])
def test_one_peer_exponential_averages_exactly_in_log2_exchanges(K: int) -> None:
    for first in (0, 1, 5):
        product = np.eye(K)
        for exchange in range(first, first + period("one_peer_exponential", K)):
            product = mixing_matrix("one_peer_exponential", K, exchange) @ product
        assert (product == 1 / K).all()
