"""pFedHN (Shamsian et al., ICML 2021, algorithm 1): a hypernetwork at the server makes each client's model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from fl_hydra.algorithms.base import Algorithm, State, algorithms
from fl_hydra.devices import to_device
from fl_hydra.errors import require

if TYPE_CHECKING:
    from torch import Tensor

    from fl_hydra.seams.clients import Clients, Facts
    from fl_hydra.seams.hypernetwork import Embedded
    from fl_hydra.seams.layout import Columns, Layout


@algorithms.register
@dataclass
class PFedHN(Algorithm):
    """The server keeps an embedding e_i of each client and a hypernetwork h; client i trains theta = h(e_i) to theta', and sends
    d = theta - theta'. Then h and e_i take a step of SGD along J^T d, J being the Jacobian of h(e_i) by them.

    Of several clients in a round h takes the mean; each of their embeddings its own. Other clients' embeddings rest, as in the paper; in
    the authors' code, whose clients are one a round, momentum and weight decay move all of them. Clients never see h or embeddings.
    With `personal_layers=head` this is pFedHN-PC. There is no global model; what is kept as the model is that of the mean
    embedding of the clients that may be drawn.
    """

    name: str = "pfedhn"
    label = "pFedHN"
    hidden_layers: int = 3
    """Hidden layers of the hypernetwork that follow a ReLU; 0: it is linear."""
    hidden_units: int = 100
    """Outputs of each of its hidden layers."""
    embedding_size: int | None = None
    """Numbers in a client's embedding; null: 1 + K / 4."""
    alpha: float = 0.01
    """Learning rate of the hypernetwork; 0: it is frozen."""
    embedding_lr: float = 0.01
    """Learning rate of the embeddings."""
    momentum: float = 0.9
    """Momentum of the server's SGD."""
    weight_decay: float = 1e-3
    """Weight decay of the server's SGD."""
    clip: float = 50.0
    """The largest norm of the server's gradient."""
    personal_layers: str = "none"
    """Layers that clients keep: none, head (the last linear layer), or names of parameters or module classes with wildcards."""
    search_steps: int = 5
    """For clients that join later: local steps before each step of their embedding, `evaluation.joining_steps` in all."""
    search_lr: float = 5.0
    """For clients that join later: learning rate of their embedding."""

    K: ClassVar[int | None] = 100
    C: ClassVar[float | None] = 0.01
    J: ClassVar[int | None] = 50
    hyper: ClassVar[tuple[str, ...]] = ("alpha", "embedding_lr", "momentum", "weight_decay", "clip", "search_lr")
    own_starts: ClassVar[bool] = True
    needs_ends: ClassVar[bool] = True
    own_server: ClassVar[bool] = True
    concludes: ClassVar[bool] = True
    computes_at_server: ClassVar[bool] = True
    synchronous: ClassVar[bool] = False

    def __post_init__(self) -> None:
        self.check_not_negative("hidden_layers", "alpha", "embedding_lr", "momentum", "weight_decay", "search_lr")
        require(self.hidden_layers <= 100, f"algorithm.hidden_layers={self.hidden_layers}: at most 100 are allowed")
        require(self.momentum < 1, f"algorithm.momentum={self.momentum}: must be below 1")
        require(self.search_steps >= 1, f"algorithm.search_steps={self.search_steps}: at least 1 is needed")
        require(self.hidden_units >= 1, f"algorithm.hidden_units={self.hidden_units}: at least 1 is needed")
        size = self.embedding_size
        require(size is None or size >= 1, f"algorithm.embedding_size={size}: at least 1 number is needed, or null for 1 + K / 4")
        require(self.clip > 0, f"algorithm.clip={self.clip}: the largest norm of a gradient must be greater than 0")

    @property
    def global_model(self) -> bool:
        return False

    def check_layout(self, layout: Layout) -> None:
        own = layout.select(self.personal_layers, "algorithm.personal_layers")
        require(
            own.width < layout.size,
            f"algorithm.personal_layers={self.personal_layers}: all layers stay with their client, so that the hypernetwork makes none; "
            "choose fewer, or algorithm=local",
        )

    def personal(self, layout: Layout) -> Columns:
        return layout.select(self.personal_layers, "algorithm.personal_layers")

    def check_memory(self, models: Tensor, facts: Facts) -> None:
        from fl_hydra.seams.hypernetwork import check_memory

        check_memory(self.name, self._width(facts), self.hidden_units, self.hidden_layers + 1, facts, models)

    def initial(self, models: Tensor, facts: Facts) -> State:
        from fl_hydra.seams.hypernetwork import Embedded

        parts = Embedded.initial(self.name, self._width(facts), self.hidden_units, self.hidden_layers + 1, facts, models)
        return State(models, carried=parts)

    def start(self, state: State, clients: Clients) -> Tensor:
        server, ids = self._server(state), to_device(clients.ids, state.model.device)
        clients.charge_server(2 * len(ids) * server.network.size)
        models = server.network.models(server.embeddings[ids])
        clients.fabric.count_down(models)
        return models

    def update(self, state: State, clients: Clients, starts: Tensor, ends: Tensor) -> None:
        reporting = to_device(np.flatnonzero(clients.reports), ends.device)
        clients.fabric.count_up(ends)
        server = self._server(state)
        clients.charge_server(4 * len(reporting) * server.network.size)
        ids = to_device(clients.ids, ends.device)[reporting]
        server.descend(ids, (starts - ends)[reporting], clients.weights[reporting], clients.hyper)

    def conclude(self, state: State, clients: Clients) -> None:
        server = self._server(state)
        mean = server.embeddings[to_device(clients.ids, state.model.device)].mean(0, keepdim=True)
        state.model.copy_(server.network.models(mean))

    def personal_models(self, state: State, clients: Clients) -> Tensor:
        server = self._server(state)
        models = server.network.models(server.embeddings[to_device(clients.ids, state.model.device)])
        if clients.personal is not None:
            self.personal(clients.facts.layout).write(models, clients.personal)
        return models

    def join(self, state: State, models: Tensor, clients: Clients, steps: int) -> Tensor:
        import torch

        server, own = self._server(state), self.personal(clients.facts.layout)
        embeddings = server.embeddings[to_device(clients.ids, models.device)]
        for taken in range(0, steps, self.search_steps):
            tuned = clients.tune(models, min(self.search_steps, steps - taken))
            changes = models - tuned
            own.write(changes, torch.zeros_like(own.of(changes)))
            for embedding, change in zip(embeddings, changes, strict=True):  # apart, so that who else joins changes no bit
                found = server.network.gradient(embedding[None], change[None], clients.weights[:1]).embeddings[0]
                embedding.sub_(clients.hyper["search_lr"][0] * found)
            models = server.network.models(embeddings)
            own.write(models, own.of(tuned))
        return models

    def _width(self, facts: Facts) -> int:
        return self.embedding_size or 1 + facts.K // 4

    def _server(self, state: State) -> Embedded:
        from fl_hydra.seams.hypernetwork import Embedded

        return Embedded(state.carried, self.hidden_layers + 1)
