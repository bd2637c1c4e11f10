"""Differential privacy for clients (DP-FedAvg: McMahan, Ramage, Talwar and Zhang, ICLR 2018), with cohorts of a fixed size."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fl_hydra.errors import require
from fl_hydra.uplinks.accountant import epsilon, usual_delta
from fl_hydra.uplinks.base import Uplink, uplinks

if TYPE_CHECKING:
    from torch import Tensor


@uplinks.register
@dataclass
class DP(Uplink):
    """Clips each client's change to a norm S, weighs all clients equally, and adds Gaussian noise to their mean, once.

    w <- w + (1 / m) sum over the m clients of change_k min(1, S / |change_k|) + noise, with deviation z 2 S / m of each entry: another
    client in place of one moves the mean by at most 2 S / m (replace-one adjacency), in a cut round too, where weights are the same.
    Noise is a function of (seed, round).

    Differences from the paper: m of K clients are drawn without replacement, where each of the paper's takes part with a probability of its
    own, so that its adjacency adds or removes a client; weights are equal (its w_k = 1), the divisor is m, and the clip is of the
    whole vector (its "flat clipping").
    """

    name: str = "dp"
    clip: float | None = 1.0
    """Largest norm S of what a client sends; null: any norm."""
    noise_multiplier: float = 1.0
    """z, the deviation of the noise relative to the most that one client can change of the mean; 0: no noise, and no privacy."""

    at_server: ClassVar[bool] = True
    private: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require(
            self.clip is None or 0 < self.clip < math.inf,
            f"uplink.clip={self.clip}: the largest norm of what a client sends must be greater than 0 and finite; null clips none",
        )
        require(
            0 <= self.noise_multiplier < math.inf,
            f"uplink.noise_multiplier={self.noise_multiplier}: must be 0 (no noise) or more and finite",
        )
        require(
            self.clip is not None or not self.noise_multiplier,
            f"uplink.noise_multiplier={self.noise_multiplier}: noise is in proportion to uplink.clip, and without it hides nobody; give "
            "uplink.clip=1, say, or uplink.noise_multiplier=0",
        )

    def check(self, statistics: int) -> None:
        require(
            not statistics,
            "uplink=dp: BatchNorm's running statistics are sent with the model, without noise; choose a model without them, as one with "
            "GroupNorm, or algorithm=fedbn, with which they stay, or leave uplink out",
        )

    def note(self, K: int, m: int, rounds: int | None) -> str:
        if not self.noise_multiplier:
            return "uplink=dp: without noise (uplink.noise_multiplier=0) nobody is hidden: epsilon is infinite"
        if rounds is None:
            return "uplink=dp: rounds differ in length, so their number is not known yet; the report says epsilon"
        delta = usual_delta(K)
        found = epsilon(K, m, self.noise_multiplier, rounds, delta)
        said = f"{found:.3g} at delta={delta:.2g}" if found is not None else "not known: pip install 'fl-hydra[privacy]' for it"
        return f"uplink=dp: after {rounds:,} rounds of {m} of {K} clients epsilon is {said} (for another client in place of one)"

    def encode(self, vectors: Tensor, slots: dict[str, Tensor], streams: Tensor) -> None:
        if self.clip is not None:
            vectors.mul_((self.clip / vectors.norm(dim=1, keepdim=True)).clamp_(max=1))

    def arrive(self, change: Tensor, clients: int, stream: int) -> None:
        from fl_hydra.randomness import hash_normal

        if self.clip is not None and self.noise_multiplier:
            noise = hash_normal(stream, change.shape[1], change.device)
            change.add_(noise.to(change.dtype), alpha=self.noise_multiplier * 2 * self.clip / clients)
