"""A server's work in pFedHR: from the models that clients return to a teacher for each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from fl_hydra.seams.architectures import Architectures
from fl_hydra.seams.clients import Clients
from fl_hydra.seams.reassembly import Library, Passes, Piece, Recipe, candidates, fine_tuned
from fl_hydra.seams.similarity import agreement, gram, k_means

SIMILARITY_SAMPLES = 128
"""Public samples, at most, whose representations are compared: Gram matrices have as many rows and columns."""


@dataclass(frozen=True)
class Received:
    """A model that the server has been sent. clients: of its architecture. row: its client's. number: of the architecture. vector: [P]."""

    clients: Clients
    row: int
    number: int
    vector: Tensor


@lru_cache(maxsize=1024)
def passes(architectures: Architectures, recipe: Recipe) -> Passes:
    """The cost of a model for one sample."""
    return Library.of(architectures).passes(recipe)


def charge_teachers(clients: Clients, samples: np.ndarray[tuple[int], np.dtype[np.int64]]) -> None:
    """Charge clients for the forward passes of their teachers. samples: int64 [rows], which each has drawn."""
    architectures = clients.facts.architectures
    assert architectures is not None
    recipes = map(Library.decoded, clients.state["recipe"].tolist())
    clients.charge(
        sum(int(count) * passes(architectures, recipe).forward for recipe, count in zip(recipes, samples, strict=True) if recipe)
    )


def give_teachers(received: Sequence[Received], cluster_num: int, count: int, sfine: int, batch: int) -> None:
    """Give each client that reports a teacher, as `recipe` and `teacher` of its state, and charge what that takes.

    Args:
        cluster_num: clusters of layers. count: candidates. sfine: passes of fine-tuning, in batches of `batch` samples.
    """
    clients = received[0].clients
    facts, architectures = clients.facts, clients.facts.architectures
    assert architectures is not None
    library, (inputs, targets) = Library.of(architectures), clients.public()
    n = len(targets)
    pieces: list[Piece] = []
    points, logits, flops = [], [], 0
    with torch.no_grad():
        for owner, model in enumerate(received):
            layers, outputs = library.representations(model.number, model.vector, inputs)
            logits.append(outputs)
            flops += n * passes(architectures, library.whole(model.number)).forward
            for place, (layer, own) in enumerate(zip(library.layers[model.number], layers, strict=True)):
                pieces.append(Piece(owner, model.number, place, layer))
                compared = [values[:SIMILARITY_SAMPLES] for values in own]
                points.append(torch.cat([gram(values).flatten() for values in compared]))
                flops += sum(2 * len(values) * values.numel() for values in compared)
    clusters = k_means(torch.stack(points), cluster_num, facts.draws("pfedhr-clusters", clients.round))
    found = candidates(pieces, clusters, count, facts.draws("pfedhr-candidates", clients.round))
    orders = [facts.draws("pfedhr-order", clients.round, epoch).permutation(n) for epoch in range(sfine)]
    teachers, similar = [], []
    for number, candidate in enumerate(found):
        recipe = tuple((piece.number, piece.place) for piece in candidate)
        draws = facts.draws("pfedhr-stitches", clients.round, number)
        vector = library.assemble(recipe, [received[piece.owner].vector for piece in candidate], draws)
        made = library.model(recipe)
        vector = fine_tuned(made, vector, inputs, targets, orders, batch, float(clients.hyper["server_lr"]))
        with torch.no_grad():
            ours = made.logits(vector, inputs)
            similar.append(torch.stack([agreement(ours, theirs) for theirs in logits]))
        cost = passes(architectures, recipe)
        flops += n * (sfine * cost.both + cost.forward)
        teachers.append((recipe, vector))
    clients.charge_server(flops)
    chosen: list[int] = torch.stack(similar).argmax(0).tolist()
    for model, number in zip(received, chosen, strict=True):
        recipe, vector = teachers[number]
        state = model.clients.state
        state["recipe"][model.row].copy_(torch.tensor(library.encoded(recipe)))
        state["teacher"][model.row, : len(vector)].copy_(vector)
        model.clients.fabric.charge_down(len(vector) * vector.element_size())
