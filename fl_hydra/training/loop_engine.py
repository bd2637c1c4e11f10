"""The engine that processes one row after the other, through the ordinary module and autograd."""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fl_hydra.seams.rows import Batch, Outputs
from fl_hydra.training.batch_layers import BatchLayers
from fl_hydra.training.engines import Engine, features_of, stream_of
from fl_hydra.training.losses import Objective


@dataclass(frozen=True)
class _Bound:
    """A row at a fixed place, with what is prepared for it once.

    module: the architecture, whose `parameters` are views of `source`. others: its other tensors, pointed to the row's data before each
    pass. source: [P], the row itself or its copy in a lower precision. gradient: [P], the row's gradient, and `views` of its parts.
    """

    module: nn.Module
    parameters: list[Tensor]
    others: dict[str, Tensor]
    source: Tensor
    gradient: Tensor
    views: list[Tensor]


RowObjective = tuple[Objective, dict[str, Tensor]]
"""An objective, with one row's further inputs."""


@dataclass(frozen=True)
class _RowBatch:
    """The batch of one row: inputs [B, ...], targets [B, ...], weights [B] or None, and the other inputs of a pass."""

    inputs: Tensor
    targets: Tensor
    weights: Tensor | None
    beside: dict[str, Tensor]
    training: bool
    fixed: bool

    @classmethod
    def of(cls, batch: Batch, row: int) -> _RowBatch:
        weights = None if batch.weights is None else batch.weights[row]
        beside = {name: tensor if name == "frozen" else tensor[row] for name, tensor in batch.beside.items()}
        return cls(batch.inputs[row], batch.targets[row], weights, beside, batch.training, batch.fixed)


class LoopEngine(Engine):
    """One row after the other: the reference, and the fastest for large convolutions on a CPU."""

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self._bound: dict[int, _Bound] = {}
        self._elsewhere: dict[tuple[int, int, int], tuple[Tensor, _Bound]] = {}

    def bind(self, places: Sequence[Tensor]) -> None:
        # The entries keep the storage alive, so that no other tensor can get its addresses.
        self._bound = {row.data_ptr(): self._bind(row) for place in places for row in place}
        self._elsewhere.clear()

    def _bound_to(self, row: Tensor, position: int) -> _Bound:
        """What is prepared for a row's place; a row elsewhere is first copied to a place for such rows.

        position: of the row in its call, as the rows of one call need separate gradients; so do threads and streams, which run in parallel.
        """
        if (bound := self._bound.get(row.data_ptr())) is not None:
            return bound
        key = (threading.get_ident(), stream_of(self.device), position)
        if key not in self._elsewhere:
            place = torch.empty_like(row, memory_format=torch.contiguous_format)
            self._elsewhere[key] = (place, self._bind(place))
        place, bound = self._elsewhere[key]
        place.copy_(row)
        return bound

    def _bind(self, row: Tensor) -> _Bound:
        # The vector is cast as a whole, and so is its gradient; autocast would cast each tensor separately.
        source = row if self.precision.compute is None else row.to(self.precision.compute)
        module = copy.deepcopy(self._architecture)
        named = dict(module.named_parameters()) | dict(module.named_buffers())
        parameters = [named[name] for name in self.layout.names]
        for parameter, view in zip(parameters, self.layout.views(source).values(), strict=True):
            parameter.data = view
        others = {name: named[name] for name in (*self.layout.statistics.names, *self.layout.frozen.names)}
        gradient = torch.empty_like(row)
        return _Bound(module, parameters, others, source, gradient, list(self.layout.views(gradient).values()))

    def threads(self, rows: int, batch_size: int) -> int:
        # Two rows in parallel, each on one core, take a fifth less time than in sequence on both: kernels this small divide badly.
        # This needs enough rows to keep every core busy, and batches large enough that Python is not the bottleneck.
        cores = torch.get_num_threads()
        if self.device.type != "cpu" or (self.layout.recurrent and self.precision.compute is None):
            return 1  # the weights of an LSTM layer fit into two cores' caches, not into one's
        return cores if batch_size >= 16 and rows >= 0.8 * cores * -(-rows // cores) else 1

    def blocks(self, rows: int, most: int) -> list[slice]:
        return [slice(row, row + 1) for row in range(rows)]

    def _gradient(self, parameters: Tensor, batch: Batch, objective: Objective | None) -> tuple[Tensor, Tensor]:
        one_by_one = [
            self._row_gradient(self._bound_to(row, position), row, _RowBatch.of(batch, position), self._row_objective(objective, position))
            for position, row in enumerate(parameters)
        ]
        if len(one_by_one) == 1:
            return one_by_one[0][0][None], one_by_one[0][1][None]
        return torch.stack([gradient for gradient, _ in one_by_one]), torch.stack([meter for _, meter in one_by_one])

    @staticmethod
    def _row_objective(objective: Objective | None, row: int) -> RowObjective | None:
        return None if objective is None else (objective, {name: value[row] for name, value in objective.inputs.items()})

    def _row_loss(self, bound: _Bound, batch: _RowBatch, objective: RowObjective | None) -> tuple[Tensor, Tensor, BatchLayers | None]:
        """A row's logits and mean loss, and the layers of the pass."""
        layers = self._point_to(bound, batch) if bound.others or self.layout.modal else None
        with (
            self.precision.active(self.device),
            self._passing(layers),
            features_of(bound.module, self.layout.head if objective else None) as features,
        ):
            logits = bound.module(batch.inputs)
        logits = logits.to(self.precision.master)
        if objective is not None and not features:
            features.append(logits[..., :0])
        if objective is None:
            return logits, self._mean_loss(logits, batch.targets, batch.weights), layers
        chosen, further = objective
        outputs = Outputs(logits, features[-1].to(self.precision.master))
        return logits, chosen.mean(outputs, batch.targets, batch.weights, further), layers

    def _point_to(self, bound: _Bound, batch: _RowBatch) -> BatchLayers | None:
        """Point a module to a row's tensors besides parameters; returns the layers of a pass in training."""
        if self.layout.modal and bound.module.training != batch.training:
            bound.module.train(batch.training)
        views, _ = self._beside(batch.beside, None, False)
        for name, view in (self._cast(views) if self.precision.compute is not None else views).items():
            bound.others[name].data = view
        if not self.layout.modal or not batch.training:
            return None
        running = {name: bound.others[name] for name in self.layout.statistics.names}
        return BatchLayers(self.precision.master, running, batch.weights, batch.beside.get("draws"), batch.fixed)

    def _row_gradient(self, bound: _Bound, row: Tensor, batch: _RowBatch, objective: RowObjective | None) -> tuple[Tensor, Tensor]:
        if self.precision.compute is not None:
            bound.source.copy_(row)
        logits, loss, layers = self._row_loss(bound, batch, objective)
        scale = self.precision.loss_scale
        gradients = torch.autograd.grad(
            loss if scale == 1 else loss * scale,
            bound.parameters,
            allow_unused=objective is not None,
            materialize_grads=objective is not None,
        )
        with torch.no_grad():
            for view, gradient in zip(bound.views, gradients, strict=True):
                view.copy_(gradient)
            if scale != 1:
                bound.gradient.mul_(1 / scale)
            return bound.gradient, self._meter(logits, batch.targets, batch.weights, loss, layers)

    def _product(self, parameters: Tensor, vectors: Tensor, batch: Batch, objective: Objective | None) -> Tensor:
        products = torch.empty_like(parameters)
        for position, (row, vector) in enumerate(zip(parameters, vectors, strict=True)):
            bound = self._bound_to(row, position)
            if self.precision.compute is not None:
                bound.source.copy_(row)
            _, loss, _ = self._row_loss(bound, _RowBatch.of(batch, position), self._row_objective(objective, position))
            gradients = torch.autograd.grad(loss * self.precision.loss_scale, bound.parameters, create_graph=True)
            along = [(g * v).sum() for g, v in zip(gradients, self.layout.views(vector).values(), strict=True)]
            found = torch.autograd.grad(torch.stack(along).sum(), bound.parameters, allow_unused=True, materialize_grads=True)
            for view, product in zip(self.layout.views(products[position]).values(), found, strict=True):
                view.copy_(product)
        return products.mul_(1 / self.precision.loss_scale)

    def _outputs_of_rows(self, parameters: Tensor, inputs: Tensor) -> Outputs:
        whole = self.layout.modal or parameters.shape[1] > self.layout.size
        rows = [
            self._outputs(row, own) if whole else self._row_outputs(self._bound_to(row, position), row, own)
            for position, (row, own) in enumerate(zip(parameters, inputs, strict=True))
        ]
        return Outputs(torch.stack([row.logits for row in rows]), torch.stack([row.features for row in rows]))

    def _row_outputs(self, bound: _Bound, row: Tensor, inputs: Tensor) -> Outputs:
        """Outputs of a model that consists of nothing but a row's parameters."""
        if self.precision.compute is not None:
            bound.source.copy_(row)
        with self.precision.active(self.device), features_of(bound.module, self.layout.head) as features:
            logits = bound.module(inputs).to(self.precision.master)
        return Outputs(logits, features[-1].to(self.precision.master) if features else logits[..., :0])

    def _logits(self, models: Tensor, inputs: Tensor) -> Tensor:
        return torch.stack([self._forward(model, inputs) for model in models])
