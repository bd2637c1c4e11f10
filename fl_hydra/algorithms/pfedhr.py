"""pFedHR (Wang et al., NeurIPS 2023, algorithm 1): models of different architectures, and teachers made of their layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fl_hydra.algorithms.base import Algorithm, Returned, State, algorithms
from fl_hydra.errors import require

if TYPE_CHECKING:
    from torch import Tensor

    from fl_hydra.seams.architectures import Architectures
    from fl_hydra.seams.clients import Clients, Facts
    from fl_hydra.seams.rows import Batch, Gradient, Rows


@algorithms.register
@dataclass
class PFedHR(Algorithm):
    """Each client trains a model of its own by CE + alpha KL(p' | p), with the predictions p' of the teacher that it was last given.

    The server takes the cohort's models apart, groups their layers by the similarity of what goes in and out on public samples, puts
    candidates together, fine-tunes them, and gives each client the one whose logits are most like its own model's.
    """

    name: str = "pfedhr"
    label = "pFedHR"
    architectures: str = ""
    """Options of `model=`, separated by `|`, of which client k has the one at position k mod n; empty: all clients have the run's model."""
    alpha: float = 0.1
    """Weight of the distillation; 0: every client trains alone."""
    public_samples: int = 200
    """Training samples that no client has, of each class in proportion, with which the server works."""
    cluster_num: int = 2
    """Clusters of layers; a candidate has a layer of each."""
    candidates: int = 4
    """Candidates of a round."""
    sfine: int = 3
    """Passes over the public samples in which a candidate is fine-tuned by Adam."""
    server_batch_size: int = 32
    """Public samples of a step of fine-tuning."""
    server_lr: float = 0.001
    """Learning rate of the fine-tuning."""

    hyper: ClassVar[tuple[str, ...]] = ("alpha", "server_lr")
    mixes: ClassVar[bool] = True
    needs_ends: ClassVar[bool] = True
    own_starts: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = True
    reads_back: ClassVar[bool] = True
    computes_at_server: ClassVar[bool] = True
    ends_with_mean: ClassVar[bool] = False
    synchronous: ClassVar[bool] = False

    def __post_init__(self) -> None:
        self.check_not_negative("alpha", "server_lr", "sfine")
        for name in ("public_samples", "cluster_num", "candidates", "server_batch_size"):
            require(getattr(self, name) >= 1, f"algorithm.{name}={getattr(self, name)}: must be at least 1")

    @property
    def global_model(self) -> bool:
        return False

    @property
    def models_of_clients(self) -> tuple[str, ...]:
        return tuple(self.architectures.split("|")) if self.architectures else ()

    @property
    def public(self) -> int:
        return self.public_samples

    def check_architectures(self, architectures: Architectures) -> None:
        from fl_hydra.seams.reassembly import Library

        Library.of(architectures)

    def client_state(self, models: Tensor, facts: Facts) -> dict[str, Tensor]:
        from fl_hydra.seams.reassembly import Library

        assert facts.architectures is not None
        library = Library.of(facts.architectures)
        nothing = models.new_full((1, 2 * library.most), -1)
        return {"model": models.clone(), "recipe": nothing, "teacher": models.new_zeros(1, library.width)}

    def start(self, state: State, clients: Clients) -> Tensor:
        return clients.state["model"].clone()

    def step(self, rows: Rows, gradient: Gradient, batches: Sequence[Batch], j: int) -> None:
        from fl_hydra.seams.reassembly import distilled, taught

        alpha = rows.hyper["alpha"][:, 0]
        if not alpha.any():
            rows.descend(gradient(rows.parameters, batches[0]), j)
            return
        logits, are_taught = taught(rows, batches[0].inputs)
        rows.descend(gradient(rows.parameters, batches[0], distilled, samples={"teacher": logits}, alpha=alpha * are_taught), j)

    def combine(self, returned: Sequence[Returned]) -> None:
        from fl_hydra.seams.teachers import Received, charge_teachers, give_teachers

        received = []
        for number, each in enumerate(returned):
            if float(each.clients.hyper["alpha"]):
                charge_teachers(each.clients, each.samples)
            each.clients.fabric.count_up(each.ends)
            each.clients.state["model"].copy_(each.ends)
            received += [Received(each.clients, row, number, each.ends[row]) for row in each.clients.reports.nonzero()[0].tolist()]
        give_teachers(received, self.cluster_num, self.candidates, self.sfine, self.server_batch_size)

    def join(self, state: State, models: Tensor, clients: Clients, steps: int) -> Tensor:
        return clients.tune(models, steps)

    def personal_models(self, state: State, clients: Clients) -> Tensor:
        return clients.state["model"].clone()
