"""CCVR (Luo et al., NeurIPS 2021, algorithm 1): the classifier is calibrated after training."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from fl_hydra.algorithms.base import Algorithm, State, algorithms
from fl_hydra.errors import require

if TYPE_CHECKING:
    from torch import Tensor

    from fl_hydra.seams.clients import Clients, Facts


@algorithms.register
@dataclass
class CCVR(Algorithm):
    """FedAvg, after whose last round every client sends number, mean and covariance of its features of each label that it has. The server
    draws virtual features from the Gaussians of all clients' features, and retrains the last linear layer with them.

    Features are the inputs of that layer, of all samples without augmentation, at the final model. It is trained by SGD on the
    cross-entropy, from where it is. The figures of the last round are the calibrated model's; those of FedAvg with the same seed are what
    they were before. The server's own work is not charged.
    """

    name: str = "ccvr"
    label = "CCVR"
    M_c: int = 100
    """Virtual features of each label."""
    calibration_epochs: int = 10
    """Passes over the virtual features; 0: FedAvg."""
    calibration_lr: float = 0.1
    """Learning rate of the calibration; 0: FedAvg."""

    hyper: ClassVar[tuple[str, ...]] = ("calibration_lr",)
    concludes: ClassVar[bool] = True
    reads_features: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self.check_not_negative("calibration_epochs", "calibration_lr")
        require(self.M_c >= 1, f"algorithm.M_c={self.M_c}: at least 1 virtual feature of each label is needed")

    def initial(self, models: Tensor, facts: Facts) -> State:
        head, counts = facts.layout.views(models).get(f"{facts.layout.head}.weight"), facts.label_counts
        require(
            head is not None and counts is not None and head.shape[1] == counts.shape[1],
            "algorithm=ccvr: retrains the last linear layer, which must be trained and give the logits; choose another model",
        )
        return State(models)

    def conclude(self, state: State, clients: Clients) -> None:
        from fl_hydra.seams.calibration import ClassGaussians, retrain

        facts, model = clients.facts, clients.receive(state.model.clone())[:1]
        if "model" in state.buffers:
            clients.fabric.count_down(state.buffers["model"], plain=True)
        views = facts.layout.views(state.model[0])
        weight, bias = views[f"{facts.layout.head}.weight"], views.get(f"{facts.layout.head}.bias")
        gaussians = ClassGaussians(*weight.shape)
        sent = [
            gaussians.add(outputs.features, targets)
            for outputs, targets in (clients.outputs(client, model) for client in clients.ids.tolist())
        ]
        clients.fabric.charge_up(sum(sent) * model.element_size())
        features, labels = gaussians.draw(self.M_c, partial(facts.draws, "ccvr-features"))
        orders = [facts.draws("ccvr-order", epoch).permutation(len(labels)) for epoch in range(self.calibration_epochs)]
        retrain(weight, bias, features, labels, orders, float(clients.hyper["calibration_lr"]))
