"""MimeLite (Karimireddy et al., NeurIPS 2021, arXiv 2008.03606, algorithm 1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from fl_hydra.algorithms.base import Algorithm, State, algorithms
from fl_hydra.errors import require

if TYPE_CHECKING:
    from torch import Tensor

    from fl_hydra.seams.clients import Clients, Facts
    from fl_hydra.seams.rows import Batch, Gradient, Rows

BASES = ("sgd", "momentum", "adam")


@algorithms.register
@dataclass
class MimeLite(Algorithm):
    """Clients step by a rule whose statistics are the server's and stay as they are in a round; then these are updated by the mean of the
    gradients at x of all samples of each client that reports.

    sgd: FedAvg. momentum: w <- w - lr ((1 - beta) g + beta m). adam: m' = (1 - beta) g + beta m and v' = (1 - beta2) g^2 + beta2 v without
    keeping them, with the bias corrections of Kingma and Ba, as in FedJAX and the code of GHBM's authors: v alone is 0 in the first round.
    The gradients are sent in one message with the model. Weight decay is the local optimizer's, outside of the rule.
    """

    name: str = "mimelite"
    label = "MimeLite"
    base: str = "momentum"
    """The rule of local steps, whose statistics the server keeps: sgd, momentum or adam."""
    beta: float = 0.9
    """Weight of the past in momentum and in Adam's first moment (its beta1)."""
    beta2: float = 0.99
    """Weight of the past in Adam's second moment."""
    eps: float = 1e-3
    """Added to Adam's denominator."""

    hyper: ClassVar[tuple[str, ...]] = ("beta", "beta2", "eps")
    sgd_inside: ClassVar[bool] = True
    messages: ClassVar[tuple[str, ...]] = ("gradient",)

    def __post_init__(self) -> None:
        require(self.base in BASES, f"algorithm.base={self.base}: choose from {', '.join(BASES)}")
        self.check_not_negative("beta", "beta2", "eps")
        for name in ("beta", "beta2"):
            require(getattr(self, name) < 1, f"algorithm.{name}={getattr(self, name)}: must be at least 0 and below 1")
        require(self.base != "adam" or self.eps > 0, f"algorithm.eps={self.eps}: must be greater than 0")

    def identity(self) -> dict[str, Any]:
        adam = self.base == "adam"
        used = {"beta": self.base != "sgd", "beta2": adam, "eps": adam}
        return {name: value if used.get(name, True) else None for name, value in super().identity().items()}

    def initial(self, models: Tensor, facts: Facts) -> State:
        """m, v and the number of their updates, where the rule has them."""
        kept = {"first": models.shape[1], "second": models.shape[1], "updates": 1}
        names = list(kept)[: {"sgd": 0, "momentum": 1, "adam": 3}[self.base]]
        return State(models, carried={name: models.new_zeros(1, kept[name]) for name in names})

    def send(self, state: State, clients: Clients) -> dict[str, Tensor]:
        return dict(state.carried)

    def direction(self, gradient: Tensor, statistics: Mapping[str, Tensor], hyper: Mapping[str, Tensor]) -> Tensor:
        """What the rule makes of a gradient [rows, P], in place; the statistics do not change."""
        if self.base == "adam":
            t = statistics["updates"] + 1
            second = (gradient * gradient).lerp_(statistics["second"], hyper["beta2"]).div_(1 - hyper["beta2"] ** t)
            gradient.lerp_(statistics["first"], hyper["beta"])
            return gradient.div_(second.sqrt_().add_(hyper["eps"]).mul_(1 - hyper["beta"] ** t))
        return gradient if self.base == "sgd" else gradient.lerp_(statistics["first"], hyper["beta"])

    def step(self, rows: Rows, gradient: Gradient, batches: Sequence[Batch], j: int) -> None:
        rows.descend(self.direction(gradient(rows.parameters, batches[0]), rows.received, rows.hyper), j)

    def at_server(self, state: State, clients: Clients) -> Tensor:
        """The mean gradient at x of clients' samples, [1, P]."""
        return clients.mean(clients.gradient(state.model), "gradient")

    def outer(self, state: State, clients: Clients, mean: Tensor) -> None:
        if self.base != "sgd":
            gradient = self.at_server(state, clients)
            state.carried["first"].lerp_(gradient, 1 - clients.hyper["beta"])
            if self.base == "adam":
                state.carried["second"].lerp_(gradient * gradient, 1 - clients.hyper["beta2"])
                state.carried["updates"].add_(1)
        super().outer(state, clients, mean)
