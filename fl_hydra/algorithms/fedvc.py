"""FedVC (Hsu et al., ECCV 2020): clients of unequal sizes as virtual clients of one size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from fl_hydra.algorithms.base import Algorithm, algorithms
from fl_hydra.errors import require


@algorithms.register
@dataclass
class FedVC(Algorithm):
    """FedAvg of virtual clients of N_VC samples: a client is drawn in proportion to its samples, takes N_VC / batch_size steps, whatever it
    holds, and all are averaged equally. If every client holds N_VC samples, this is FedAvg with one pass a round.

    A large client uses N_VC of its samples in a round, a small one its samples several times. Here clients go on through their shards, as
    in all methods, so that a large one has used all of its samples before it repeats one; in the paper N_VC are drawn afresh in each
    round. Draws and weights are those of `participation=by_size`, which also counts a client with more than n / m samples as several.
    """

    name: str = "fedvc"
    label = "FedVC"
    N_VC: int | None = None
    """Samples of a virtual client, a multiple of batch_size; null: J times batch_size."""

    virtual_clients: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require(self.N_VC is None or self.N_VC >= 1, f"algorithm.N_VC={self.N_VC}: a virtual client needs at least 1 sample")

    @property
    def sends_mean_alone(self) -> bool:
        return False  # the server also knows how many samples clients hold

    def own_steps(self, batch_size: int) -> int | None:
        if self.N_VC is None:
            return None
        steps = self.N_VC // batch_size
        works = " or ".join(str(each * batch_size) for each in (steps, steps + 1) if each)
        require(
            self.N_VC % batch_size == 0,
            f"algorithm.N_VC={self.N_VC}: a virtual client takes steps of batch_size={batch_size} samples; choose {works}",
        )
        return steps

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "N_VC": None}  # J and batch_size say it
