"""kNN-Per (Marfoq et al., ICML 2022, section 3): the global model, and the nearest of a client's own samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, ClassVar

from fl_hydra.algorithms.base import Algorithm, State, algorithms
from fl_hydra.errors import UserError, require

if TYPE_CHECKING:
    from torch import Tensor

    from fl_hydra.seams.clients import Clients, Facts
    from fl_hydra.seams.rows import Outputs


@algorithms.register
@dataclass
class KNNPer(Algorithm):
    """FedAvg, whose clients predict with lam p_knn + (1 - lam) p: p is the model's softmax, and p_knn are the labels of the k of a client's
    own samples with the nearest features, weighted by exp(-d^2 / (width scale)), with the Euclidean distance d.

    In the paper the weights are exp(-d); these are those of the authors' code. One k and one lam are for all clients: those with the best
    mean accuracy over clients on validation samples. Features are the inputs of the last linear layer, of samples without augmentation.
    """

    name: str = "knn_per"
    label = "kNN-Per"
    k: str = "10"
    """How many neighbours count; of several numbers, separated by |, the best on validation samples is taken."""
    lam: str = "0|0.1|0.2|0.3|0.4|0.5|0.6|0.7|0.8|0.9|1"
    """Weight of the neighbours, from 0 (the global model) to 1; of several, separated by |, the best on validation samples is taken."""
    scale: float = 1.0
    """By which squared distances are divided, besides the number of features; inf: all k weigh the same."""
    capacity: float = 1.0
    """Part of its samples that a client remembers, above 0 and at most 1."""

    hyper: ClassVar[tuple[str, ...]] = ("scale",)
    predicts: ClassVar[bool] = True
    reads_features: ClassVar[bool] = True
    one_target: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require(min(self._listed("k", int)) >= 1, f"algorithm.k={self.k}: at least 1 neighbour is needed")
        require(all(0 <= lam <= 1 for lam in self._listed("lam", float)), f"algorithm.lam={self.lam}: choose weights from 0 to 1")
        require(self.scale > 0, f"algorithm.scale={self.scale}: must be above 0; with inf all neighbours weigh the same")
        require(0 < self.capacity <= 1, f"algorithm.capacity={self.capacity}: is a part of a client's samples, above 0 and at most 1")

    def _listed(self, name: str, kind: Callable[[str], float]) -> list[float]:
        text = str(getattr(self, name))
        try:
            return [kind(part) for part in text.split("|")]
        except ValueError as error:
            what = "whole numbers" if kind is int else "numbers"
            raise UserError(f"algorithm.{name}={text}: give one of {what}, or several separated by |") from error

    @property
    def personalised(self) -> bool:
        return True

    @property
    def choices(self) -> tuple[Mapping[str, float], ...]:
        return tuple({"k": k, "lam": lam} for k, lam in product(self._listed("k", int), self._listed("lam", float)))

    def initial(self, models: Tensor, facts: Facts) -> State:
        size, client = min((size, client) for client, size in enumerate(facts.sizes.tolist()) if size)
        remembered = self._remembered(size)
        require(
            max(self._listed("k", int)) <= remembered,
            f"algorithm.k={self.k}: client {client} remembers {remembered} samples (algorithm.capacity={self.capacity} of its {size}); "
            "choose fewer neighbours, a larger capacity, a smaller K, or another sharding for larger shards",
        )
        return State(models)

    def _remembered(self, size: int) -> int:
        return int(self.capacity * size)

    def predictor(self, clients: Clients, model: Tensor) -> Callable[[Outputs], Tensor]:
        import torch

        from fl_hydra.seams.neighbours import Memory, mixed

        (client,) = clients.ids.tolist()
        outputs, targets = clients.outputs(client, model)
        drawn = clients.facts.draws("knn-per-memory", client).permutation(len(targets))[: self._remembered(len(targets))]
        which = torch.from_numpy(drawn).sort().values.to(targets.device)
        memory, ks, scale = (
            Memory(outputs.features[which], targets[which]),
            [int(k) for k in self._listed("k", int)],
            clients.hyper["scale"],
        )
        weights = model.new_tensor(self._listed("lam", float))

        def predict(outputs: Outputs) -> Tensor:
            (logits,), (features,) = outputs.logits, outputs.features
            return mixed(logits, memory.probabilities(features, ks, scale, logits.shape[-1]), weights)

        return predict
