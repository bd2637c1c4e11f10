"""Engines: where the gradients of rows come from. They are interchangeable and tested against each other.

- `loop`: one row after the other through the ordinary module and autograd; the reference.
- `stacked`: all rows in one call (`torch.func.vmap`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from fl_hydra.training.images import Images
from fl_hydra.training.layout import Layout
from fl_hydra.training.rows import Batch

PRECISIONS = {"fp32": torch.float32, "bf16": torch.float32, "fp64": torch.float64}
"""The dtype of master weights, slots and averages."""

EVALUATION_BATCH = 128


class Engine(ABC):
    """Gradients and evaluations of many models of one architecture.

    Args:
        module: the architecture; its own parameters are never read.
        layout: of the module's parameters.
        precision: `fp32`, `bf16` (autocast over fp32 masters) or `fp64`.
        device: where the rows live.
    """

    name: str

    def __init__(self, module: nn.Module, layout: Layout, precision: str, device: torch.device) -> None:
        self.module = module
        self.layout = layout
        self.device = device
        self.samples = 0
        """Samples that gradients were computed for, counted as often as they were asked for."""
        self._bf16 = precision == "bf16"

    def _autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, torch.bfloat16) if self._bf16 else nullcontext()

    def _forward(self, vector: Tensor | dict[str, Tensor], inputs: Tensor) -> Tensor:
        views = self.layout.views(vector) if isinstance(vector, Tensor) else vector
        with self._autocast():
            logits: Tensor = functional_call(self.module, views, (inputs,))
        return logits if logits.dtype == torch.float64 else logits.float()

    @staticmethod
    def _mean_loss(logits: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        """Mean cross-entropy over the samples that count; 0 where none does."""
        if weights is None:
            return F.cross_entropy(logits, targets)
        return (F.cross_entropy(logits, targets, reduction="none") * weights).sum() / weights.sum().clamp(min=1)

    @staticmethod
    def _meter(logits: Tensor, targets: Tensor, weights: Tensor | None, mean_loss: Tensor) -> Tensor:
        """Summed loss and number of correct predictions: [2]."""
        correct = (logits.argmax(-1) == targets).to(logits.dtype)
        if weights is None:
            return torch.stack([mean_loss * len(targets), correct.sum()])
        return torch.stack([mean_loss * weights.sum(), (correct * weights).sum()])

    def bind(self, parameters: Tensor) -> None:
        """Be told where the rows of all rounds lie, [rows, P], so that what depends on the place alone is made once."""

    @abstractmethod
    def blocks(self, rows: int) -> list[slice]:
        """How the rows of a round are divided: each block takes all its local steps before the next one starts."""

    def gradient(self, parameters: Tensor, batch: Batch) -> Tensor:
        """The gradient of each row's mean loss: parameters [rows, P] -> [rows, P], a fresh tensor."""
        gradient, meter = self._gradient(parameters, batch)
        self.samples += int(batch.counts.sum())
        if not batch.metered:
            batch.meter.add_(meter)
            batch.metered = True
        return gradient

    @abstractmethod
    def _gradient(self, parameters: Tensor, batch: Batch) -> tuple[Tensor, Tensor]: ...

    @abstractmethod
    def _logits(self, models: Tensor, inputs: Tensor) -> Tensor:
        """models [models, P], inputs [n, ...] -> [models, n, classes]."""

    @torch.no_grad()
    def evaluate(self, models: Tensor, images: Images) -> Tensor:
        """Summed loss and number of correct predictions of each model [models, P] over all images: float64 [models, 2]."""
        totals = torch.zeros(len(models), 2, dtype=torch.float64, device=self.device)
        for start in range(0, len(images), EVALUATION_BATCH):
            stop = min(start + EVALUATION_BATCH, len(images))
            targets = images.labels[start:stop].expand(len(models), -1)
            logits = self._logits(models, images.plain(start, stop))
            totals[:, 0] += F.cross_entropy(logits.transpose(1, 2), targets, reduction="none").sum(1)
            totals[:, 1] += (logits.argmax(-1) == targets).sum(1)
        return totals


class LoopEngine(Engine):
    """One row after the other: the reference, and the fastest for convolutions on a CPU."""

    name = "loop"

    def __init__(self, module: nn.Module, layout: Layout, precision: str, device: torch.device) -> None:
        super().__init__(module, layout, precision, device)
        self._bound: dict[int, dict[str, Tensor]] = {}

    def bind(self, parameters: Tensor) -> None:
        # The views keep the storage alive, so that its addresses are given to no other tensor.
        self._bound = {row.data_ptr(): self._leaves(row) for row in parameters}

    def _leaves(self, row: Tensor) -> dict[str, Tensor]:
        """The parameters in a row as differentiable views."""
        return {name: view.detach().requires_grad_() for name, view in self.layout.views(row).items()}

    def blocks(self, rows: int) -> list[slice]:
        return [slice(row, row + 1) for row in range(rows)]

    def _gradient(self, parameters: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        weights = [None] * len(parameters) if batch.weights is None else list(batch.weights)
        one_by_one = [
            self._row_gradient(row, inputs, targets, weight)
            for row, inputs, targets, weight in zip(parameters, batch.inputs, batch.targets, weights, strict=True)
        ]
        if len(one_by_one) == 1:
            return one_by_one[0][0][None], one_by_one[0][1][None]
        return torch.stack([gradient for gradient, _ in one_by_one]), torch.stack([meter for _, meter in one_by_one])

    def _row_gradient(self, row: Tensor, inputs: Tensor, targets: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
        leaves = self._bound.get(row.data_ptr()) or self._leaves(row)
        logits = self._forward(leaves, inputs)
        loss = self._mean_loss(logits, targets, weights)
        gradients = torch.autograd.grad(loss, list(leaves.values()))
        with torch.no_grad():
            return self.layout.flat(gradients), self._meter(logits, targets, weights, loss)

    def _logits(self, models: Tensor, inputs: Tensor) -> Tensor:
        return torch.stack([self._forward(model, inputs) for model in models])


class StackedEngine(Engine):
    """All rows in one call."""

    name = "stacked"

    def blocks(self, rows: int) -> list[slice]:
        return [slice(0, rows)]

    def _gradient(self, parameters: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        def loss(vector: Tensor, inputs: Tensor, targets: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
            logits = self._forward(vector, inputs)
            value = self._mean_loss(logits, targets, weights)
            return value, self._meter(logits, targets, weights, value)

        in_dims = (0, 0, 0, None if batch.weights is None else 0)
        gradient, meter = vmap(grad(loss, has_aux=True), in_dims=in_dims)(parameters, batch.inputs, batch.targets, batch.weights)
        return gradient, meter.detach()

    def _logits(self, models: Tensor, inputs: Tensor) -> Tensor:
        logits: Tensor = vmap(self._forward, in_dims=(0, None))(models, inputs)
        return logits


ENGINES: dict[str, type[Engine]] = {"loop": LoopEngine, "stacked": StackedEngine}


def choose_engine(name: str, device: torch.device, layout: Layout) -> str:
    """Resolve `auto`: on a GPU, and for networks without convolutions, calls are dearer than arithmetic, so rows are stacked.

    On a CPU a stacked convolution becomes a grouped one, which takes 2.5 times as long as one row after the other.
    """
    if name != "auto":
        return name
    convolutional = any(len(shape) > 2 for shape in layout.shapes)
    return "loop" if device.type == "cpu" and convolutional else "stacked"
