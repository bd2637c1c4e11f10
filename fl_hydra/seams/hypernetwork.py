"""A network whose outputs are the parameters of clients' models, and steps of it that follow from how these were changed.

Its last layer has as many outputs as a model has parameters: with LeNet and 100 hidden units, 82 million weights. So that layer is in no
graph, and its gradient is never in memory as a whole: it is handled in blocks that fit into a core's cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fl_hydra.devices import free_memory
from fl_hydra.errors import require
from fl_hydra.seams.clients import Facts

BLOCK = 2**19
"""About how many numbers of the last layer are handled at once."""


@dataclass
class Gradient:
    """A gradient by embeddings [n, width], by the trunk [1, numbers], and by the heads, which is the product of changes [n, P] and inputs
    [n, units + 1]."""

    embeddings: Tensor
    trunk: Tensor
    changes: Tensor
    inputs: Tensor

    def clip(self, largest: Tensor) -> None:
        """Scale it down to this L2 norm, [1, 1], if it is longer, as `torch.nn.utils.clip_grad_norm_` does."""
        of_heads = (self.changes @ self.changes.mT) * (self.inputs @ self.inputs.mT)
        norm = (of_heads.sum().clamp(min=0) + self.trunk.square().sum() + self.embeddings.square().sum()).sqrt()
        factor = (largest / (norm + 1e-6)).clamp(max=1)
        for part in (self.embeddings, self.trunk, self.changes):
            part.mul_(factor)


@dataclass(frozen=True)
class Hypernetwork:
    """Linear layers with ReLUs between them, and one more, without a ReLU before it, whose outputs are a model's parameters.

    widths: of the embeddings, and of the outputs of each layer but the last. trunk: [1, numbers], weights [outputs, inputs] and biases of
    these layers, one after the other. heads: [P, units + 1], weights of the last layer, and its biases as the last column.
    """

    widths: tuple[int, ...]
    trunk: Tensor
    heads: Tensor

    @property
    def size(self) -> int:
        """How many weights and biases it has."""
        return self.trunk.numel() + self.heads.numel()

    def models(self, embeddings: Tensor) -> Tensor:
        """The models of embeddings [n, width], [n, P]."""
        # Copies, as the last bits of a product may depend on addresses, and one by one, as they may on how many are made together.
        trunk = self.trunk.clone()
        inputs = [_with_ones(self._features(one[None].clone(), trunk))[0].clone() for one in embeddings]
        found = embeddings.new_empty(len(inputs), len(self.heads))
        for part in self._blocks():
            heads = self.heads[part].clone()
            for model, own in zip(found, inputs, strict=True):
                model[part] = heads @ own
        return found

    def gradient(self, embeddings: Tensor, changes: Tensor, weights: Tensor) -> Gradient:
        """The gradient of <c_i, model of e_i>, c_i held fixed: by each embedding e_i, and of the sum with weights w_i by all else.

        Args:
            embeddings: [n, width]. changes: c, [n, P]. weights: [n].
        """
        pulled = changes.new_zeros(len(changes), self.heads.shape[1])
        for part in self._blocks():
            pulled += changes[:, part] @ self.heads[part].clone()
        by_features, weights = pulled[:, :-1], weights[:, None]
        with torch.enable_grad():
            leaves = embeddings.clone().requires_grad_(), self.trunk.clone().requires_grad_()
            features = self._features(*leaves)
        (of_embeddings,) = torch.autograd.grad(features, leaves[0], by_features, retain_graph=True)
        (of_trunk,) = torch.autograd.grad(features, leaves[1], by_features * weights)
        return Gradient(of_embeddings, of_trunk, changes * weights, _with_ones(features.detach()))

    def descend(self, velocity: Hypernetwork, gradient: Gradient, hyper: Mapping[str, Tensor]) -> None:
        """Take a step in place, at the rate `alpha`. velocity: of the trunk and of the heads."""
        _heavy_ball(self.trunk, velocity.trunk, gradient.trunk, hyper["alpha"], hyper)
        for part in self._blocks():
            of_part = gradient.changes[:, part].mT @ gradient.inputs
            _heavy_ball(self.heads[part], velocity.heads[part], of_part, hyper["alpha"], hyper)

    def _features(self, embeddings: Tensor, trunk: Tensor) -> Tensor:
        """The inputs of the last layer, [n, units]."""
        features, pairs = embeddings, list(pairwise(self.widths))
        parts = iter(torch.split(trunk[0], [size for inputs, outputs in pairs for size in (outputs * inputs, outputs)]))
        for position, (inputs, outputs) in enumerate(pairs):
            features = F.linear(features.relu() if position else features, next(parts).view(outputs, inputs), next(parts))
        return features

    def _blocks(self) -> Iterator[slice]:
        rows = max(1, BLOCK // self.heads.shape[1])
        return (slice(first, first + rows) for first in range(0, len(self.heads), rows))


class Embedded:
    """A hypernetwork and the embeddings of clients, [K, width], with their velocities: what a run carries, in its own memory.

    Args:
        carried: by name, made by :meth:`initial`. layers: of the trunk.
    """

    def __init__(self, carried: Mapping[str, Tensor], layers: int) -> None:
        self.embeddings, self._velocity = carried["embeddings"][0], carried["velocity.embeddings"][0]
        widths = (self.embeddings.shape[1], *[carried["heads"].shape[-1] - 1] * layers)
        self.network, self._velocities = (
            Hypernetwork(widths, carried[f"{prefix}trunk"][0], carried[f"{prefix}heads"][0]) for prefix in ("", "velocity.")
        )

    @staticmethod
    def initial(option: str, width: int, units: int, layers: int, facts: Facts, like: Tensor) -> dict[str, Tensor]:
        """All tensors before the first round, with a leading axis of length 1.

        Embeddings are drawn as `torch.nn.Embedding` does, and layers as `torch.nn.Linear`: uniform, at most 1 / sqrt(inputs).

        Args:
            option: the method's, after which draws are named. width: of embeddings. units, layers: of the trunk.
            like: of what type, and where, the tensors are to be.
        """
        K, P = facts.K, facts.layout.size
        shapes = _shapes(width, units, layers, P)
        draws = facts.draws(option)

        def uniform(rows: int, columns: int, inputs: int) -> Tensor:
            drawn = torch.from_numpy(draws.random((rows, columns), np.float32))
            return drawn.sub_(0.5).mul_(2 / inputs**0.5).to(like)

        named = {
            "embeddings": torch.from_numpy(draws.standard_normal((K, width), np.float32)).to(like),
            "trunk": torch.cat([uniform(1, outputs * (inputs + 1), inputs) for outputs, inputs in shapes[:-1]], 1),
            "heads": uniform(P, units + 1, units),
        }
        zeros = {f"velocity.{name}": torch.zeros_like(tensor) for name, tensor in named.items()}
        return {name: tensor[None] for name, tensor in (named | zeros).items()}

    def descend(self, ids: Tensor, changes: Tensor, weights: Tensor, hyper: Mapping[str, Tensor]) -> None:
        """Take a step along the gradient of how models were changed. Embeddings of other clients do not move.

        Args:
            ids: of clients, int64 [n]. changes: starts minus ends, [n, P]. weights: of clients in the gradient of the network, [n].
            hyper: `alpha`, the rate of the network, `embedding_lr`, `momentum`, `weight_decay` and `clip`, [1, 1].
        """
        embeddings, velocity = self.embeddings[ids], self._velocity[ids]
        gradient = self.network.gradient(embeddings, changes, weights)
        gradient.clip(hyper["clip"])
        self.network.descend(self._velocities, gradient, hyper)
        _heavy_ball(embeddings, velocity, gradient.embeddings, hyper["embedding_lr"], hyper)
        self.embeddings[ids], self._velocity[ids] = embeddings, velocity


def check_memory(option: str, width: int, units: int, layers: int, facts: Facts, models: Tensor) -> None:
    """Refuse hypernetworks that do not fit into the memory that is free.

    Args:
        option, width, units, layers: as in :meth:`Embedded.initial`. models: [runs, P], of all runs that are to have one.

    Raises:
        UserError: they take more memory than is free.
    """
    K, P, runs = facts.K, facts.layout.size, len(models)
    numbers = K * width + sum(outputs * (inputs + 1) for outputs, inputs in _shapes(width, units, layers, P))
    needed, free = 4 * runs * numbers * models.element_size(), free_memory(models.device)
    together = f", for each of the {runs} runs that train together," if runs > 1 else ""
    fewer = f"hydra.launcher.runs below {runs}, " if runs > 1 else ""
    require(
        free is None or needed <= free,
        f"algorithm={option}: a hypernetwork of {numbers:,} numbers for {K:,} clients and models of {P:,}{together} takes {needed:,} bytes "
        f"with its momentum and a copy of both for checkpoints, and {free:,} are free; choose {fewer}algorithm.hidden_units below {units}, "
        f"algorithm.embedding_size below {width}, or a smaller model",
    )


def _shapes(width: int, units: int, layers: int, P: int) -> list[tuple[int, int]]:
    """Outputs and inputs of each layer."""
    return [(units, width), *[(units, units)] * (layers - 1), (P, units)]


def _heavy_ball(parameters: Tensor, velocity: Tensor, gradient: Tensor, lr: Tensor, hyper: Mapping[str, Tensor]) -> None:
    """g <- g + wd w;  u <- m u + g;  w <- w - lr u, in place; the gradient is overwritten."""
    velocity.mul_(hyper["momentum"]).add_(gradient.addcmul_(parameters, hyper["weight_decay"]))
    parameters.addcmul_(velocity, lr, value=-1)


def _with_ones(features: Tensor) -> Tensor:
    return F.pad(features, (0, 1), value=1.0)
