"""Fed-RoD (Chen and Chao, ICLR 2022, algorithm 1): one head for all classes alike, and one for what a client has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fl_hydra.algorithms.base import Algorithm, State, algorithms
from fl_hydra.errors import require

if TYPE_CHECKING:
    from torch import Tensor

    from fl_hydra.seams.clients import Clients, Facts
    from fl_hydra.seams.layout import Columns, Layout
    from fl_hydra.seams.rows import Batch, Gradient, Outputs, Rows

LEAST = 1e-30
"""Samples that a label without any is taken to have: its logit counts for nothing, and losses stay finite."""


@algorithms.register
@dataclass
class FedROD(Algorithm):
    """FedAvg of a generic model, trained with a balanced softmax: the cross-entropy of f_y + gamma log n_y, where n_y of a client's samples
    have the label y. A second linear layer stays with each client. On the same features it is trained with the cross-entropy of the sum of
    both layers' logits, which changes nothing of the generic model. The client predicts with the sum.

    The personal layer starts at 0, where public code copies the generic one. It is the paper's linear one, without its hypernetwork. It is
    trained on the features of evaluation: without dropout, with running statistics.
    """

    name: str = "fedrod"
    label = "FedROD"
    gamma: float = 1.0
    """Exponent of label counts in the balanced softmax; 0: the generic model is FedAvg's."""

    hyper: ClassVar[tuple[str, ...]] = ("gamma",)
    row_facts: ClassVar[tuple[str, ...]] = ("label_counts",)
    reads_features: ClassVar[bool] = True
    stepped: ClassVar[tuple[str, ...]] = ("head",)
    gradients_per_batch: ClassVar[float] = 4 / 3

    def __post_init__(self) -> None:
        self.check_not_negative("gamma")

    @property
    def personalised(self) -> bool:
        return True

    def stepped_columns(self, layout: Layout) -> dict[str, Columns]:
        return {"head": layout.select("head", "")}

    def client_state(self, models: Tensor, facts: Facts) -> dict[str, Tensor]:
        head, counts = facts.layout.views(models).get(f"{facts.layout.head}.weight"), facts.label_counts
        require(
            head is not None and counts is not None and head.shape[1] == counts.shape[1],
            "algorithm=fedrod: adds a layer to the last linear one, which must be trained and give the logits; choose another model",
        )
        return {"head": models.new_zeros(1, self.stepped_columns(facts.layout)["head"].width)}

    def step(self, rows: Rows, gradient: Gradient, batches: Sequence[Batch], j: int) -> None:
        from fl_hydra.seams.heads import head_gradient, head_logits

        head, margins = rows.state["head"], rows.hyper["gamma"] * rows.facts["label_counts"].clamp(min=LEAST).log()
        outputs = gradient.outputs(rows.parameters, batches[0])
        outputs.logits = outputs.logits + head_logits(outputs.features, head, outputs.logits.shape[-1])
        own = head_gradient(outputs, batches[0], head.shape[1])
        rows.descend(gradient(rows.parameters, batches[0], balanced, margins=margins), j)
        rows.descend(own, j, of="head")

    def personal_models(self, state: State, clients: Clients) -> Tensor:
        models, head = super().personal_models(state, clients), self.stepped_columns(clients.facts.layout)["head"]
        head.write(models, head.of(models) + clients.state["head"])
        return models

    def join(self, state: State, models: Tensor, clients: Clients, steps: int) -> Tensor:
        return clients.tune(models, steps, columns=self.stepped_columns(clients.facts.layout)["head"])


def balanced(outputs: Outputs, targets: Tensor, /, **inputs: Tensor) -> Tensor:
    """Cross-entropies of logits raised by `margins` [classes]."""
    from fl_hydra.seams.losses import cross_entropies

    return cross_entropies(outputs.logits + inputs["margins"], targets)
