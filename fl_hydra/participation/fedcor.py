"""FedCor: clients whose losses are most informative about everyone's (Tang et al., CVPR 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fl_hydra.arrays import Indices, Reals
from fl_hydra.errors import require
from fl_hydra.participation.base import Cohort, Participation, Round, SchemeState, noted, participations, require_samples, uniformly


@participations.register
@dataclass
class FedCor(Participation):
    """Losses of clients change together: a Gaussian process over these changes predicts whose training lowers the total loss most.

    Changes in a round are modelled as N(0, S) with S = X^T X + noise^2 I, client k having the embedding X_k in `dimension` dimensions (the
    paper's linear kernel). The cohort is chosen greedily: each time the client k with the largest expected decrease of the total loss,

        alpha_k sum_i p_i S_ik / sqrt(S_kk),    p_i = n_i / n,

    after which S is conditioned on k: S <- S - S_k S_k^T / S_kk, as in the authors' code. alpha_k is `beta` to the power of how often k
    was chosen since the last fit, so that clients take turns.

    The authors' code differs in three points: where changes are observed, how X is fitted, and how updates are weighted.

    Changes are observed in rounds with uniform cohorts: the first `warmup` rounds, and one in `interval` after that; before and after
    such a round all clients are queried for their losses, which is charged. (The authors' code instead trains a random cohort besides the
    chosen one and discards its update.) X maximises the likelihood of the last `history` changes, weighted by `forget` to the power of
    their age. With this kernel there is a closed form, in float64: eigenvectors of the second moment of the changes, scaled by
    (eigenvalue - noise^2)^(1/2), as in probabilistic principal component analysis (Tipping and Bishop 1999, equation 7); the authors
    use gradient ascent, and count `history` and age in rounds, not in observations. Updates are weighted by data size as in FedAvg;
    their code weights them equally. The schedule of uniform rounds (`warmup`, `interval`) is our choice.
    """

    name: str = "fedcor"
    version: ClassVar[int] = 2
    warmup: int = 15
    """Rounds at the start with uniform cohorts, in which loss changes are observed."""
    interval: int = 10
    """After `warmup`, every how many rounds the cohort is uniform."""
    beta: float = 0.95
    """Discount of a client for each time that it was chosen since the last fit."""
    dimension: int = 15
    """Dimension of the clients' embeddings X_k."""
    history: int = 11
    """Number of the latest observations that the process is fitted to."""
    forget: float = 1.0
    """Factor of an observation's weight per step of its age."""
    noise: float = 0.01
    """Standard deviation of the noise in observed changes."""
    samples: int | None = None
    """Samples of each client that its loss is computed on; null: all."""

    asks: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_samples(self.samples)
        for key in ("warmup", "dimension", "history"):
            require(getattr(self, key) >= 1, f"participation.{key}={getattr(self, key)}: at least 1 is needed")
        require(self.interval >= 2, f"participation.interval={self.interval}: at least 2, as one round of each interval is uniform")
        for key in ("beta", "forget"):
            require(0 < getattr(self, key) <= 1, f"participation.{key}={getattr(self, key)}: above 0 and at most 1")
        require(
            1e-50 <= self.noise <= 1e50,
            f"participation.noise={self.noise}: 1e-50 to 1e50, so that covariances can be inverted",
        )

    def uniform(self, round: int) -> bool:
        """Whether this round, from 0, has a uniform cohort, so that a change is observed."""
        return round < self.warmup or (round > self.warmup and (round - self.warmup) % self.interval == 0)

    def cohort(self, round: Round) -> Cohort:
        clients, r = round.clients, round.round
        remember: dict[str, Reals] = {}
        before, observes = r > 0 and self.uniform(r - 1), self.uniform(r)
        if before or observes:
            remember["loss"] = noted(round, "loss", clients, round.losses(clients, self.samples))
        if before:
            remember |= self._observe(round, remember["loss"] - round.recall("loss"), fit=not observes)
        if observes:
            return Cohort(uniformly(clients, round.m, round.rng("cohort")), remember=remember)
        memory = {**round.memory, **remember}
        places = memory["places"][:, clients]
        chosen = memory["chosen"]
        covariance = places.T @ places + self.noise**2 * np.eye(len(clients))
        # Among equal clients chance decides, not their ids.
        order = round.rng("cohort").permutation(len(clients))
        shuffled = clients[order]
        found = greedy(covariance[np.ix_(order, order)], round.shares[shuffled], self.beta ** chosen[shuffled], round.m)
        picked = shuffled[found]
        more = chosen.copy()
        more[picked] += 1
        return Cohort(np.sort(picked), remember={**remember, "chosen": more})

    def _observe(self, round: Round, change: Reals, fit: bool) -> SchemeState:
        """Add a change of losses, float64 [K], to the history; if `fit`, fit X to it."""
        before = round.memory.get("changes", np.empty((0, len(change))))
        kept = np.concatenate([change[None], before])[: self.history]
        remember = {"changes": kept}
        if fit:
            changes = kept[:, round.clients]
            sound = np.isfinite(changes).all(1)
            places = np.zeros((1, len(round.sizes)))
            if sound.any():  # else the model has diverged, and any cohort is as good
                weights = self.forget ** np.flatnonzero(sound)
                fitted = embedding(changes[sound], weights / weights.sum(), self.dimension, self.noise)
                places = np.zeros((len(fitted), len(round.sizes)))
                places[:, round.clients] = fitted
            remember |= {"places": places, "chosen": np.zeros(len(round.sizes))}
        return remember


def embedding(changes: Reals, weights: Reals, dimension: int, noise: float) -> Reals:
    """The X, float64 [d, n], that maximises the likelihood sum of w_t log N(c_t; 0, X^T X + noise^2 I); d is at most `dimension`.

    Args:
        changes: float64 [T, n]. weights: float64 [T], summing to 1.
    """
    # The eigenvectors of sum of w_t c_t c_t^T are the right singular vectors of the rows sqrt(w_t) c_t.
    _, roots, vectors = np.linalg.svd(np.sqrt(weights)[:, None] * changes, full_matrices=False)
    scales = np.sqrt((roots**2 - noise**2).clip(min=0))[:dimension, None]
    found: Reals = scales * vectors[:dimension]
    return found


def greedy(covariance: Reals, shares: Reals, discounts: Reals, count: int) -> Indices:
    """`count` clients, one by one, each with the largest expected decrease of the total loss given those before; int64 [count].

    Args:
        covariance: float64 [n, n], of loss changes. shares: float64 [n], of each client's loss in the total. discounts: float64 [n].
    """
    left = np.ones(len(shares), np.bool_)
    chosen = []
    # Do not divide by a variance that is only rounding error.
    least = max(1e-12 * float(np.diagonal(covariance).max()), float(np.finfo(np.float64).tiny))
    for _ in range(count):
        variances = np.diagonal(covariance).clip(min=least)
        falls = np.where(left, discounts * (shares @ covariance) / np.sqrt(variances), -np.inf)
        best = int(falls.argmax())
        chosen.append(best)
        left[best] = False
        covariance = covariance - np.outer(covariance[best], covariance[best]) / variances[best]
    return np.array(chosen, np.int64)
