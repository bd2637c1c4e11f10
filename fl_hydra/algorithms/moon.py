"""MOON (Li, He and Song, CVPR 2021, equation 3): features like those of the received model, unlike those of the client's previous one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fl_hydra.algorithms.base import Algorithm, algorithms
from fl_hydra.errors import require

if TYPE_CHECKING:
    from torch import Tensor

    from fl_hydra.seams.clients import Facts
    from fl_hydra.seams.rows import Batch, Gradient, Outputs, Rows


@algorithms.register
@dataclass
class MOON(Algorithm):
    """Clients add mu log(1 + exp((s(z, z') - s(z, z_x)) / temperature)) to each sample's loss, with the cosine s of its features: z now,
    z_x of the received model, z' of the model with which the client ended its last round.

    Features are the inputs of the last linear layer. In the paper a projection head of two layers precedes it, in the models of all methods
    alike: give `model=` one. A client's first z' is the initial model's, which changes nothing in the first round, as in the authors' code
    (there it has other initial weights). BatchNorm's running statistics are the client's present ones for all three.
    """

    name: str = "moon"
    label = "MOON"
    mu: float = 1.0
    """Weight of the contrast; 0: FedAvg, with two more forward passes."""
    temperature: float = 0.5
    """By which differences of similarities are divided."""
    hyper: ClassVar[tuple[str, ...]] = ("mu", "temperature")
    reads_features: ClassVar[bool] = True
    gradients_per_batch: ClassVar[float] = 5 / 3

    def __post_init__(self) -> None:
        self.check_not_negative("mu")
        require(0 < self.temperature < math.inf, f"algorithm.temperature={self.temperature}: must be above 0 and finite")

    def client_state(self, models: Tensor, facts: Facts) -> dict[str, Tensor]:
        return {"previous": models.clone()}

    def step(self, rows: Rows, gradient: Gradient, batches: Sequence[Batch], j: int) -> None:
        received, previous = (gradient.outputs(models, batches[0]).features for models in (rows.starts, rows.state["previous"]))
        mu, temperature = (rows.hyper[name][:, 0] for name in ("mu", "temperature"))
        features = {"received": received, "previous": previous}
        rows.descend(gradient(rows.parameters, batches[0], contrasted, samples=features, mu=mu, temperature=temperature), j)

    def after_steps(self, rows: Rows) -> None:
        rows.state["previous"].copy_(rows.parameters)


def contrasted(outputs: Outputs, targets: Tensor, /, **inputs: Tensor) -> Tensor:
    """Cross-entropies plus `mu` times the contrast of features, [B, ..., width], with those of the `received` and `previous` models."""
    from torch.nn.functional import cosine_similarity, softplus

    from fl_hydra.seams.losses import cross_entropies

    like, unlike = (cosine_similarity(outputs.features, inputs[name], dim=-1) for name in ("received", "previous"))
    return cross_entropies(outputs.logits, targets) + inputs["mu"] * softplus((unlike - like) / inputs["temperature"])
