"""FedIR (Hsu et al., ECCV 2020): samples weighted by how rare their label is at their client."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fl_hydra.algorithms.base import Algorithm, State, algorithms

if TYPE_CHECKING:
    from torch import Tensor

    from fl_hydra.seams.clients import Clients
    from fl_hydra.seams.rows import Batch, Gradient, Outputs, Rows


@algorithms.register
@dataclass
class FedIR(Algorithm):
    """FedAvg whose clients weigh the loss of a sample with label y by p(y) / q_k(y), the fractions of label y among all training samples
    and among their own.

    So the expected loss at a client that has every label is that of all samples: E_{q_k}[w l] = E_p[l], if images of a label are alike
    everywhere. Weights are not normalised by batch, which would bias this, and labels that a client does not have count nowhere in its
    loss: with few labels its weights, and steps, are small. The server sends p with the model.
    """

    name: str = "fedir"
    label = "FedIR"

    row_facts: ClassVar[tuple[str, ...]] = ("label_counts",)

    @property
    def sends_mean_alone(self) -> bool:
        return False  # the server also knows all clients' labels

    def send(self, state: State, clients: Clients) -> dict[str, Tensor]:
        from fl_hydra.devices import to_device

        assert clients.facts.label_counts is not None
        counts = clients.facts.label_counts[clients.facts.drawn]
        fractions = to_device(counts.sum(0, keepdims=True) / counts.sum(), state.model.device)
        return {"fractions": fractions.to(state.model.dtype)}

    def step(self, rows: Rows, gradient: Gradient, batches: Sequence[Batch], j: int) -> None:
        counts = rows.facts["label_counts"]
        ratios = rows.received["fractions"] * counts.sum(1, keepdim=True) / counts.clamp(min=1)
        rows.descend(gradient(rows.parameters, batches[0], weighted, ratios=ratios), j)


def weighted(outputs: Outputs, targets: Tensor, /, **inputs: Tensor) -> Tensor:
    """Cross-entropies times the `ratios` [classes] of their labels."""
    from fl_hydra.seams.losses import cross_entropies

    return cross_entropies(outputs.logits, targets) * inputs["ratios"][targets]
