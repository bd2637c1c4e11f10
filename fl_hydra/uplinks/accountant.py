"""What rounds of `uplink=dp` reveal of a client: epsilon, computed by Google's dp-accounting, an extra of this package."""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec

MISSING = "epsilon of uplink=dp is computed by dp-accounting, which is not installed; pip install 'fl-hydra[privacy]'"


def usual_delta(K: int) -> float:
    """The delta at which epsilon is stated where none is chosen: K^-1.1 (McMahan et al., ICLR 2018, section 4)."""
    return float(K**-1.1)


@lru_cache(maxsize=4096)
def epsilon(K: int, m: int, noise_multiplier: float, rounds: int, delta: float) -> float | None:
    """The epsilon at `delta` of all models after some rounds, for another client in place of one (replace-one adjacency).

    In each round m of K clients are drawn without replacement, and the mean of their vectors, of which one client moves by at most D, gets
    Gaussian noise of deviation `noise_multiplier` x D. The RDP of such a round is bounded by theorem 27 of Wang, Balle and Kasiviswanathan
    (AISTATS 2019), and added over rounds.

    Returns:
        infinity without noise; None: the library is not installed.
    """
    if not noise_multiplier:
        return float("inf")
    if not rounds:
        return 0.0
    if find_spec("dp_accounting") is None:
        return None
    from dp_accounting import GaussianDpEvent, NeighboringRelation, SampledWithoutReplacementDpEvent
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant(neighboring_relation=NeighboringRelation.REPLACE_ONE)
    accountant.compose(SampledWithoutReplacementDpEvent(K, m, GaussianDpEvent(noise_multiplier)), rounds)
    return float(accountant.get_epsilon(delta))
