"""SlowMo (Wang et al., ICLR 2020, algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass

from fl_hydra.algorithms.base import algorithms
from fl_hydra.algorithms.localsgd import LocalSGD


@algorithms.register
@dataclass
class SlowMo(LocalSGD):
    """LocalSGD whose rounds end with a step of slow momentum: u <- beta u + (x - mean) / gamma;  x <- x - alpha gamma u.

    alpha is `server.lr` (1 in the paper's experiments), beta `server.momentum`, gamma the mean of the schedule's local rates over the
    round's steps (in the paper the rate is constant within a round). `momentum` is the paper's buffer strategy for the local optimizer:
    `reset` (its choice for SGD), `keep` (its "maintain") or `average`. The default is `keep`, as in LocalSGD, so that the two differ
    only in the outer step; with few local steps, buffers that are reset never fill, and momentum 0.9 hardly takes effect.
    """

    name: str = "slowmo"
    label = "SlowMo"
