"""Topologies that workers can meet in."""

from __future__ import annotations

from fl_hydra.decentralized.topologies import DIRECTED, TOPOLOGIES

UNDIRECTED = [topology for topology in TOPOLOGIES if topology not in DIRECTED]


def admitted(topology: str) -> list[int]:
    primes = {n for n in range(2, 65) if all(n % d for d in range(2, n))}
    return [K for K in range(1, 65) if topology != "torus" or K not in primes]
