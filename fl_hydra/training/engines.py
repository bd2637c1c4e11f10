"""Engines: where the gradients of rows come from. They are interchangeable and tested against each other.

- `loop`: one row after the other through the ordinary module and autograd; the reference.
- `stacked`: all rows in one call (`torch.func.vmap`).
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from threading import Lock

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
        self._architecture = module
        self.layout = layout
        self.device = device
        self.samples = 0
        """Samples that gradients were computed for, counted as often as they were asked for."""
        self._counting = Lock()
        self._bf16 = precision == "bf16"
        self._common: tuple[int, int, Tensor] | None = None

    def _autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, torch.bfloat16) if self._bf16 else nullcontext()

    def _forward(self, vector: Tensor | dict[str, Tensor], inputs: Tensor) -> Tensor:
        views = self.layout.views(vector) if isinstance(vector, Tensor) else vector
        with self._autocast():
            logits: Tensor = functional_call(self._architecture, views, (inputs,))
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
        correct = logits.argmax(-1) == targets
        if weights is None:
            return torch.stack([mean_loss * len(targets), correct.sum()])
        return torch.stack([mean_loss * weights.sum(), (correct * weights).sum()])

    def bind(self, places: Sequence[Tensor]) -> None:
        """Be told where rows will lie in all rounds, each [rows, P], so that what depends on the place alone is made once."""

    def share(self, rows: Tensor, model: Tensor) -> None:
        """Be told that all `rows` [rows, P] are copies of `model` [P], so that their first gradient may be taken as that of one model.

        It holds until the rows are written to, or the model is: their version counters tell.
        """
        self._common = (rows.data_ptr(), rows._version + model._version, model)

    def _shared(self, parameters: Tensor) -> Tensor | None:
        """The model [P] that all these rows still equal, if there is one."""
        if self._common is None:
            return None
        address, version, model = self._common
        return model if parameters.data_ptr() == address and parameters._version + model._version == version else None

    def threads(self, rows: int, batch_size: int) -> int:
        """How many blocks of a round of so many rows are trained at once, each by a thread of its own."""
        return 1

    @abstractmethod
    def blocks(self, rows: int) -> list[slice]:
        """How the rows of a round are divided: each block takes all its local steps before the next one starts."""

    def gradient(self, parameters: Tensor, batch: Batch) -> Tensor:
        """The gradient of each row's mean loss: parameters [rows, P] -> [rows, P], valid until it is asked for again."""
        gradient, meter = self._gradient(parameters, batch)
        with self._counting:  # rows may be trained in threads
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


@dataclass(frozen=True)
class _Bound:
    """A row that lies in one place for good, with what is made once for it.

    module: the architecture with its `parameters` inside `source`. source: [P], the row itself or its bf16 copy.
    gradient: [P], where the row's gradient is written.
    """

    module: nn.Module
    parameters: list[nn.Parameter]
    source: Tensor
    gradient: Tensor


class LoopEngine(Engine):
    """One row after the other: the reference, and the fastest for convolutions on a CPU."""

    name = "loop"

    def __init__(self, module: nn.Module, layout: Layout, precision: str, device: torch.device) -> None:
        super().__init__(module, layout, precision, device)
        self._bound: dict[int, _Bound] = {}

    def bind(self, places: Sequence[Tensor]) -> None:
        # The entries keep the storage alive, so that its addresses are given to no other tensor.
        self._bound = {row.data_ptr(): self._bind(row) for place in places for row in place}

    def _bind(self, row: Tensor) -> _Bound:
        # For bf16 the vector is cast at once, and its gradient back: autocast would do the same for each tensor on its own.
        source = row.bfloat16() if self._bf16 else row
        module = copy.deepcopy(self._architecture)
        parameters = list(module.parameters())
        for parameter, view in zip(parameters, self.layout.views(source).values(), strict=True):
            parameter.data = view
        return _Bound(module, parameters, source, torch.empty_like(row))

    def threads(self, rows: int, batch_size: int) -> int:
        # Two rows on a core each take a fifth less time than one after the other on both: kernels this small divide badly.
        # It needs rows enough to keep every core busy, and batches large enough that Python is not what they wait for.
        cores = torch.get_num_threads() if self.device.type == "cpu" else 1
        return cores if batch_size >= 16 and rows >= 0.8 * cores * -(-rows // cores) else 1

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
        bound = self._bound.get(row.data_ptr()) or self._bind(row)
        if self._bf16:
            bound.source.copy_(row)
        with self._autocast():
            logits = bound.module(inputs)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        loss = self._mean_loss(logits, targets, weights)
        gradients = torch.autograd.grad(loss, bound.parameters)
        with torch.no_grad():
            if self._bf16:
                bound.gradient.copy_(self.layout.flat(gradients))
            else:
                self.layout.flat(gradients, bound.gradient)
            return bound.gradient, self._meter(logits, targets, weights, loss)

    def _logits(self, models: Tensor, inputs: Tensor) -> Tensor:
        return torch.stack([self._forward(model, inputs) for model in models])


class StackedEngine(Engine):
    """All rows in one call."""

    name = "stacked"

    def __init__(self, module: nn.Module, layout: Layout, precision: str, device: torch.device) -> None:
        super().__init__(module, layout, precision, device)
        self._gradients: Tensor | None = None

    def blocks(self, rows: int) -> list[slice]:
        return [slice(0, rows)]

    def _gradient(self, parameters: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        def loss(views: dict[str, Tensor], inputs: Tensor, targets: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
            logits = self._forward(views, inputs)
            value = self._mean_loss(logits, targets, weights)
            return value, self._meter(logits, targets, weights, value)

        # While the rows are equal, the forward pass is that of one model with a batch of all their samples.
        model = self._shared(parameters)
        in_dims = (0 if model is None else None, 0, 0, None if batch.weights is None else 0)
        views = self.layout.views(parameters if model is None else model)
        gradients, meter = vmap(grad(loss, has_aux=True), in_dims=in_dims)(views, batch.inputs, batch.targets, batch.weights)
        if self._gradients is None or self._gradients.shape != parameters.shape:
            self._gradients = torch.empty_like(parameters)
        for name, place in self.layout.views(self._gradients).items():
            place.copy_(gradients[name])
        return self._gradients, meter.detach()

    def _logits(self, models: Tensor, inputs: Tensor) -> Tensor:
        logits: Tensor = vmap(self._forward, in_dims=(0, None))(models, inputs)
        return logits


ENGINES: dict[str, type[Engine]] = {"loop": LoopEngine, "stacked": StackedEngine}


LARGE_STEP = 1e9
"""FLOPs of one row's local step from which a CPU spends its time in the convolutions themselves, and not in calling them."""


def choose_engine(name: str, device: torch.device, layout: Layout, step_flops: float) -> str:
    """Resolve `auto`: where calls are dearer than arithmetic, rows are stacked: on a GPU, and for small steps on a CPU.

    On a CPU a stacked convolution becomes a grouped one, which takes up to 2.5 times as long as one row after the other.

    Args:
        step_flops: of one row's local step.
    """
    if name != "auto":
        return name
    convolutional = any(len(shape) > 2 for shape in layout.shapes)
    return "loop" if device.type == "cpu" and convolutional and step_flops >= LARGE_STEP else "stacked"
