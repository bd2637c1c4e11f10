"""Engines: where the gradients of rows come from. They are interchangeable and tested against each other.

- :class:`LoopEngine`: one row after the other through the ordinary module and autograd; the reference.
- :class:`StackedEngine`: all rows in one call (`torch.func.vmap`), with convolutions as grouped ones or as matrix products.

How an engine's steps are launched, one by one or as replayed CUDA graphs, is :mod:`fl_hydra.training.graphs`.
"""

from __future__ import annotations

import copy
import gc
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.overrides import TorchFunctionMode

from fl_hydra.errors import require
from fl_hydra.seams.layout import Layout
from fl_hydra.seams.rows import GRADIENTS, METER_WIDTH, OUTPUTS, PRODUCTS, Batch, Loss, Outputs
from fl_hydra.training.batch_layers import BatchLayers
from fl_hydra.training.precision import Precision
from fl_hydra.training.samples import Samples

CPU_EVALUATION_BATCH, GPU_EVALUATION_BATCH = 128, 10_000
"""Images of one evaluation call: what stays in a CPU's cache; all of a usual test set on a GPU."""

CPU_GRADIENT_BATCH = 512
"""Samples of a row's batch that a CPU computes at once: of larger batches the parts take less time than the whole, and less memory."""


@dataclass(frozen=True)
class Objective:
    """A loss other than cross-entropy, with its inputs.

    whole: whether it is that of a whole batch. by_row: further inputs by name, [rows, ...]; by_sample: [rows, B, ...].
    """

    loss: Loss
    whole: bool
    by_row: dict[str, Tensor]
    by_sample: dict[str, Tensor]

    @property
    def inputs(self) -> dict[str, Tensor]:
        """All further inputs, with a leading axis of rows."""
        return self.by_row | self.by_sample

    def rows(self, part: slice) -> Objective:
        """That of some of the rows."""
        by_row, by_sample = ({name: value[part] for name, value in values.items()} for values in (self.by_row, self.by_sample))
        return replace(self, by_row=by_row, by_sample=by_sample)

    def samples(self, part: slice) -> Objective:
        """That of some samples of every row's batch."""
        return replace(self, by_sample={name: value[:, part] for name, value in self.by_sample.items()})

    def mean(self, outputs: Outputs, targets: Tensor, weights: Tensor | None, inputs: dict[str, Tensor]) -> Tensor:
        """The loss of one row's batch: the mean over the targets that count, unless it is taken of the whole batch."""
        if self.whole:
            return self.loss(outputs, targets, weights=weights, **inputs)  # type: ignore[arg-type]
        losses, mask = self.loss(outputs, targets, **inputs), _target_mask(targets, weights)
        return losses.mean() if mask is None else (losses * mask).sum() / mask.sum().clamp(min=1)


class Engine(ABC):
    """Gradients and evaluations of many models of one architecture.

    Args:
        module: the architecture; its own parameters are never read.
        layout: of the module's parameters.
        precision: of master rows and of the computation.
        device: where the rows live.
        notify: is told, in one line, what the user should know.
    """

    def __init__(
        self,
        module: nn.Module,
        layout: Layout,
        precision: Precision,
        device: torch.device,
        notify: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._architecture = module.to(device) if layout.modal or layout.frozen.names else module
        self._in_evaluation = copy.deepcopy(self._architecture).eval() if layout.modal else self._architecture
        self._uncast = frozenset(layout.statistics.names)
        self._momenta = torch.tensor(
            [momentum for momentum, size in zip(layout.momenta, layout.statistics.sizes, strict=True) for _ in range(size)],
            dtype=precision.master,
            device=device,
        )
        self.layout = layout
        self.device = device
        self.precision = precision
        self._notify = notify
        self.samples_at_once = CPU_GRADIENT_BATCH if device.type == "cpu" and not layout.statistics.names else 2**62
        """Samples of a row's batch that are computed at once; a larger batch is accumulated. Halved when memory runs out."""
        self.squares = False
        """Whether meters have a fourth figure: the sum of the squared losses of samples."""

    def _forward(self, vector: Tensor | dict[str, Tensor], inputs: Tensor, layers: BatchLayers | None = None) -> Tensor:
        """Logits of one model: a vector of parameters and what else makes it, or its tensors by name. layers: those of a pass in training;
        None: the model in evaluation."""
        views = self.layout.whole_views(vector) if isinstance(vector, Tensor) else vector
        if self.precision.compute is not None:  # by hand: autocast loses sight of parameters under nested transforms
            views = self._cast(views)
        with self.precision.active(self.device), self._passing(layers):
            logits: Tensor = functional_call(self._module(layers), views, (inputs,))
        return logits.to(self.precision.master)

    def _cast(self, views: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a model as it computes with them; running statistics stay as they are."""
        return {name: view if name in self._uncast else view.to(self.precision.compute) for name, view in views.items()}

    def _module(self, layers: BatchLayers | None) -> nn.Module:
        return self._in_evaluation if layers is None else self._architecture

    def _passing(self, layers: BatchLayers | None) -> AbstractContextManager[object]:
        if not self.layout.modal:
            return nullcontext()
        return BatchLayers(self.precision.master) if layers is None else layers

    def _beside(self, beside: Mapping[str, Tensor], weights: Tensor | None, training: bool) -> tuple[dict[str, Tensor], BatchLayers | None]:
        """What one row's pass reads beside parameters: tensors by name, and its layers, None where they do as in evaluation."""
        running = self.layout.statistics.views(beside["statistics"]) if "statistics" in beside else {}
        others = self.layout.frozen.views(beside["frozen"]) if "frozen" in beside else {}
        layers = BatchLayers(self.precision.master, running, weights, beside.get("draws")) if training and self.layout.modal else None
        return running | others, layers

    def _outputs(self, vector: Tensor | dict[str, Tensor], inputs: Tensor, layers: BatchLayers | None = None) -> Outputs:
        with _features_of(self._module(layers), self.layout.head) as features:
            logits = self._forward(vector, inputs, layers)
        if not features:
            features.append(logits[..., :0])
        return Outputs(logits, features[-1].to(self.precision.master))

    @staticmethod
    def _mean_loss(logits: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        """Mean cross-entropy over the targets that count; 0 where none does."""
        mask = _target_mask(targets, weights)
        if mask is None:
            return F.cross_entropy(logits, targets)
        return (_losses(logits, targets) * mask).sum() / mask.sum().clamp(min=1)

    def _meter(self, logits: Tensor, targets: Tensor, weights: Tensor | None, mean_loss: Tensor, layers: BatchLayers | None) -> Tensor:
        """Summed loss, number of correct predictions, number of targets, and, where it is wanted, the summed square: [3 or 4]; of models
        with running statistics those of the batch follow."""
        correct = logits.argmax(-1) == targets
        mask = _target_mask(targets, weights)
        squares = [_squares(logits, targets, weights)] if self.squares else []
        if mask is None:
            meter = torch.stack([mean_loss * len(targets), correct.sum(), torch.full_like(mean_loss, len(targets)), *squares])
        else:
            count = mask.sum()
            meter = torch.stack([mean_loss * count, (correct * mask).sum(), count, *squares])
        return torch.cat([meter, layers.statistics]) if layers is not None and self.layout.statistics.names else meter

    def bind(self, places: Sequence[Tensor]) -> None:
        """Make, once, what belongs to fixed memory of rows: `places`, each [rows, P], in which rows lie in all rounds."""

    def mark_equal(self, rows: Tensor) -> None:
        """Note that `rows` [rows, P] are copies of one model, which holds until they are written to (by their version counter)."""

    def threads(self, rows: int, batch_size: int) -> int:
        """How many threads of a CPU, each with a core of its own, share the blocks of a run that has so many rows in a round."""
        return 1

    @property
    def branches(self) -> int:
        """How many blocks, of whichever runs, are trained side by side as branches of a graph."""
        return 1 if self.device.type == "cpu" else GPU_BRANCHES

    @abstractmethod
    def blocks(self, rows: int, most: int) -> list[slice]:
        """How the rows of a run are divided: each block, of at most `most` rows, takes all its local steps before the next starts."""

    def gradient(self, parameters: Tensor, batch: Batch, objective: Objective | None = None, *, metered: bool = True) -> Tensor:
        """The gradient of each row's mean loss: parameters [rows, P] -> [rows, P], valid until it is asked for again.

        Of a batch larger than `samples_at_once` it is the weighted sum of the gradients of its parts. The metered gradient also updates the
        running statistics of the batch's rows.

        Args:
            objective: cross-entropy if None. metered: whether the batch's meter is told of it.

        Raises:
            TypeError: a second gradient of a batch is to be metered.
            UserError: the batch would be divided, and the model takes statistics of it.
        """
        if metered and batch.metered:
            raise TypeError("a second gradient of a batch is metered; say metered=False of all but the one at the rows' own parameters")
        while True:
            try:
                gradient, meter = self._whole_gradient(parameters, batch, objective)
                break
            except RuntimeError as error:
                if objective is not None and objective.whole:
                    raise
                self._divide(batch.targets.shape[1], error)
        if metered:
            batch.metered = True
            if batch.statistics is not None and batch.training:
                meter, found = torch.split(meter, [batch.meter.shape[1], self.layout.statistics.size], 1)
                batch.statistics.lerp_(found, self._momenta)
            batch.meter.add_(meter)
        batch.calls[:, GRADIENTS] += 1
        return gradient

    def _whole_gradient(self, parameters: Tensor, batch: Batch, objective: Objective | None) -> tuple[Tensor, Tensor]:
        size = batch.targets.shape[1]
        if size <= self.samples_at_once or (objective is not None and objective.whole):
            return self._gradient(parameters, batch, objective)
        self._check_whole(batch, size)
        total, meters = torch.zeros_like(parameters), torch.zeros_like(batch.meter)
        whole = _count(batch)
        for part in _even_parts(size, self.samples_at_once):
            piece = batch.samples(part)
            gradient, meter = self._gradient(parameters, piece, None if objective is None else objective.samples(part))
            share = _count(piece) / whole
            total.add_(gradient.mul_(share))
            meters.add_(meter)
        return total, meters

    def _check_whole(self, batch: Batch, size: int) -> None:
        if batch.training:
            check_batch(self.layout, size, self.samples_at_once)

    def outputs(self, parameters: Tensor, batch: Batch) -> Outputs:
        """What the models [rows, P] make of each row's batch, in evaluation."""
        batch.calls[:, OUTPUTS] += 1
        return self.outputs_of(self.layout.whole(parameters, batch.statistics, batch.frozen), batch.inputs)

    @torch.no_grad()
    def outputs_of(self, parameters: Tensor, inputs: Tensor) -> Outputs:
        """What whole models [rows, P or more] (:meth:`Layout.whole`) make of inputs [rows, B, ...]."""
        parts = [self._outputs_of_rows(parameters, inputs[:, part]) for part in _even_parts(inputs.shape[1], self.samples_at_once)]
        if len(parts) == 1:
            return parts[0]
        return Outputs(torch.cat([part.logits for part in parts], 1), torch.cat([part.features for part in parts], 1))

    def product(self, parameters: Tensor, vectors: Tensor, batch: Batch, objective: Objective | None = None) -> Tensor:
        """The Hessian of each row's mean loss at parameters [rows, P] times vectors [rows, P]: [rows, P], in new memory."""
        batch.calls[:, PRODUCTS] += 1
        size = batch.targets.shape[1]
        if size <= self.samples_at_once or (objective is not None and objective.whole):
            return self._product(parameters, vectors, batch, objective)
        self._check_whole(batch, size)
        total, whole = torch.zeros_like(parameters), _count(batch)
        for part in _even_parts(size, self.samples_at_once):
            piece = batch.samples(part)
            found = self._product(parameters, vectors, piece, None if objective is None else objective.samples(part))
            total.add_(found.mul_(_count(piece) / whole))
        return total

    def _divide(self, size: int, error: RuntimeError) -> None:
        """Take half as many samples of a batch at once after this.

        Raises:
            RuntimeError: the error itself, if it is another one, if a single sample does not fit, or while a graph is recorded.
        """
        size = min(size, self.samples_at_once)
        if size == 1 or not self._may_retry(error):
            raise error
        self.samples_at_once = -(-size // 2)
        self._make_room(error)
        self._notify(f"{size} samples at once do not fit into memory; going on with {self.samples_at_once}")

    def _may_retry(self, error: RuntimeError) -> bool:
        """Whether less at once may help: memory ran out, and no graph is being recorded."""
        return out_of_memory(error) and not (self.device.type == "cuda" and torch.cuda.is_current_stream_capturing())

    def _make_room(self, error: RuntimeError) -> None:
        error.__traceback__ = None  # its frames hold what filled the memory
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @abstractmethod
    def _gradient(self, parameters: Tensor, batch: Batch, objective: Objective | None) -> tuple[Tensor, Tensor]: ...

    @abstractmethod
    def _outputs_of_rows(self, parameters: Tensor, inputs: Tensor) -> Outputs:
        """parameters [rows, P or more], inputs [rows, B, ...]."""

    @abstractmethod
    def _product(self, parameters: Tensor, vectors: Tensor, batch: Batch, objective: Objective | None) -> Tensor: ...

    @abstractmethod
    def _logits(self, models: Tensor, inputs: Tensor) -> Tensor:
        """models [models, P or more], inputs [n, ...] -> [models, n, classes]."""

    @torch.no_grad()
    def evaluate(self, models: Tensor, samples: Samples, which: Tensor | None = None) -> Tensor:
        """Summed loss, number of correct predictions and number of targets of each whole model [models, P or more]: float64 [models, 3].

        Args:
            which: int64 [n], of which samples; None: of all.
        """
        totals = torch.zeros(len(models), METER_WIDTH, dtype=torch.float64, device=self.device)
        # Of few models of one run. Those of other runs are another call, as the number of models decides the last bits.
        size = CPU_EVALUATION_BATCH if self.device.type == "cpu" else max(256, GPU_EVALUATION_BATCH // len(models))
        which = torch.arange(len(samples), device=self.device) if which is None else which
        for indices in torch.split(which, size):
            totals += score(self._logits(models, samples.plain(indices)), samples.targets[indices])
        return totals

    @torch.no_grad()
    def losses(self, model: Tensor, samples: Samples, which: Tensor) -> Tensor:
        """The summed loss of the targets of each of some samples, int64 [n], under a whole model [P or more], and how many they are.

        Returns:
            float64 [n, 2].
        """
        size = CPU_EVALUATION_BATCH if self.device.type == "cpu" else GPU_EVALUATION_BATCH
        found = []
        for indices in torch.split(which, size):
            targets = samples.targets[indices]
            losses = _losses(self._logits(model[None], samples.plain(indices))[0], targets).double()
            found.append(torch.stack([losses.view(len(indices), -1).sum(1), (targets >= 0).view(len(indices), -1).sum(1)], 1))
        return torch.cat(found)


@dataclass(frozen=True)
class _Bound:
    """A row that lies in one place for good, with what is made once for it.

    module: the architecture with its `parameters` inside `source`. others: what else it has, which is pointed to where it lies, pass by
    pass. source: [P], the row itself or its copy in a lower precision. gradient: [P], where the row's gradient is written, and its parts,
    `views`.
    """

    module: nn.Module
    parameters: list[Tensor]
    others: dict[str, Tensor]
    source: Tensor
    gradient: Tensor
    views: list[Tensor]


RowObjective = tuple[Objective, dict[str, Tensor]]
"""An objective, with what of its further inputs is one row's."""


@dataclass(frozen=True)
class _RowBatch:
    """The batch of one row: inputs [B, ...], targets [B, ...], weights [B] or None, and what a pass reads beside them."""

    inputs: Tensor
    targets: Tensor
    weights: Tensor | None
    beside: dict[str, Tensor]
    training: bool

    @classmethod
    def of(cls, batch: Batch, row: int) -> _RowBatch:
        weights = None if batch.weights is None else batch.weights[row]
        beside = {name: tensor if name == "frozen" else tensor[row] for name, tensor in batch.beside.items()}
        return cls(batch.inputs[row], batch.targets[row], weights, beside, batch.training)


class LoopEngine(Engine):
    """One row after the other: the reference, and the fastest for large convolutions on a CPU."""

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self._bound: dict[int, _Bound] = {}
        self._elsewhere: dict[tuple[int, int, int], tuple[Tensor, _Bound]] = {}

    def bind(self, places: Sequence[Tensor]) -> None:
        # The entries keep the storage alive, so that its addresses are given to no other tensor.
        self._bound = {row.data_ptr(): self._bind(row) for place in places for row in place}
        self._elsewhere.clear()

    def _bound_to(self, row: Tensor, position: int) -> _Bound:
        """What is made once for the place of a row; where it has none, of a place for such rows that it is copied into.

        position: of the row among those of one call; their gradients are needed together. Threads, and streams of a GPU, run side by side.
        """
        if (bound := self._bound.get(row.data_ptr())) is not None:
            return bound
        key = (threading.get_ident(), _stream(self.device), position)
        if key not in self._elsewhere:
            place = torch.empty_like(row, memory_format=torch.contiguous_format)
            self._elsewhere[key] = (place, self._bind(place))
        place, bound = self._elsewhere[key]
        place.copy_(row)
        return bound

    def _bind(self, row: Tensor) -> _Bound:
        # The vector is cast at once, and its gradient back: autocast would do the same for each tensor on its own.
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
        # Two rows on a core each take a fifth less time than one after the other on both: kernels this small divide badly.
        # It needs rows enough to keep every core busy, and batches large enough that Python is not what they wait for.
        cores = torch.get_num_threads()
        if self.device.type != "cpu" or (self.layout.recurrent and self.precision.compute is None):
            return 1  # of an LSTM two cores hold the weights of a layer in their caches, of which one has half
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
            _features_of(bound.module, self.layout.head if objective else None) as features,
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
        """Let a module hold what a row has beside its parameters; its layers of a pass in training."""
        if self.layout.modal and bound.module.training != batch.training:
            bound.module.train(batch.training)
        views, _ = self._beside(batch.beside, None, False)
        for name, view in (self._cast(views) if self.precision.compute is not None else views).items():
            bound.others[name].data = view
        if not self.layout.modal or not batch.training:
            return None
        running = {name: bound.others[name] for name in self.layout.statistics.names}
        return BatchLayers(self.precision.master, running, batch.weights, batch.beside.get("draws"))

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
        rows = [self._outputs(row, own) for row, own in zip(parameters, inputs, strict=True)]
        return Outputs(torch.stack([row.logits for row in rows]), torch.stack([row.features for row in rows]))

    def _logits(self, models: Tensor, inputs: Tensor) -> Tensor:
        return torch.stack([self._forward(model, inputs) for model in models])


T = TypeVar("T")

GPU_BRANCHES = 16
"""Rows that are captured side by side as branches of one graph."""


class StackedEngine(Engine):
    """All rows in one call. A stacked convolution is a grouped one, unless `im2col` makes it a stack of matrix products."""

    im2col: ClassVar[bool] = False

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self._gradients: dict[tuple[int, torch.Size], Tensor] = {}
        self._chunk = 2**62
        """Rows of one call; halved when memory runs out."""
        self._equal: tuple[Tensor, int] | None = None

    def bind(self, places: Sequence[Tensor]) -> None:
        self._gradients.clear()

    def mark_equal(self, rows: Tensor) -> None:
        self._equal = (rows, rows._version)

    def _shared(self, parameters: Tensor) -> Tensor | None:
        """The model [P] that all these rows still equal, if they do."""
        if self._equal is None:
            return None
        rows, version = self._equal
        unchanged = parameters.data_ptr() == rows.data_ptr() and parameters.shape == rows.shape and rows._version == version
        return rows[0] if unchanged else None

    def blocks(self, rows: int, most: int) -> list[slice]:
        return _even_parts(rows, most)

    def _gradient(self, parameters: Tensor, batch: Batch, objective: Objective | None) -> tuple[Tensor, Tensor]:
        key = (_stream(self.device), parameters.shape)
        if key not in self._gradients:  # one for each branch, and never rebound: graphs write to it
            self._gradients[key] = torch.empty_like(parameters)
        out = self._gradients[key]
        if (model := self._shared(parameters)) is not None and self._chunk >= len(parameters):
            try:
                return out, self._shared_gradient(model, batch, out, objective)
            except RuntimeError as error:
                self._halve(len(parameters), error)
        meters = self._in_chunks(
            len(parameters), lambda part: self._own_gradient(parameters[part], batch.rows(part), out[part], _rows_of(objective, part))
        )
        return out, meters[0] if len(meters) == 1 else torch.cat(meters)

    def _in_chunks(self, rows: int, work: Callable[[slice], T]) -> list[T]:
        """Do some work for all rows, of as many at once as fit into memory."""
        done: list[T] = []
        start = 0
        while start < rows:
            part = slice(start, min(start + self._chunk, rows))
            try:
                done.append(work(part))
                start = part.stop
            except RuntimeError as error:
                self._halve(part.stop - part.start, error)
        return done

    def _halve(self, rows: int, error: RuntimeError) -> None:
        """Take half as many rows at once after this.

        Raises:
            RuntimeError: the error itself, if it is another one, if a single row does not fit, or while a graph is recorded.
        """
        if rows == 1 or not self._may_retry(error):
            raise error
        self._chunk = -(-rows // 2)
        self._make_room(error)
        self._notify(f"{rows} rows at once do not fit into memory; going on with {self._chunk}")

    def _loss(
        self,
        objective: Objective | None,
        training: bool,
        views: dict[str, Tensor],
        inputs: Tensor,
        targets: Tensor,
        weights: Tensor | None,
        beside: dict[str, Tensor] | None = None,
        further: dict[str, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """One row's loss, and its meter. beside: what it reads beside its parameters; further: inputs of the objective."""
        layers = None
        if beside:
            others, layers = self._beside(beside, weights, training)
            views = views | others
        if objective is None:
            logits = self._forward(views, inputs, layers)
            value = self._mean_loss(logits, targets, weights)
        else:
            outputs = self._outputs(views, inputs, layers)
            logits, value = outputs.logits, objective.mean(outputs, targets, weights, further or {})
        return value * self.precision.loss_scale, self._meter(logits, targets, weights, value, layers)

    def _own_gradient(self, parameters: Tensor, batch: Batch, out: Tensor, objective: Objective | None) -> Tensor:
        """Gradients of rows at their own parameters, into `out` [rows, P]; the meter [rows, 3]."""
        return self._stacked_gradient(self.layout.views(parameters), 0, batch, out, objective)

    def _shared_gradient(self, model: Tensor, batch: Batch, out: Tensor, objective: Objective | None) -> Tensor:
        """Gradients of rows that all equal `model` [P], into `out` [rows, P]: the forward pass is that of one model."""
        return self._stacked_gradient(self.layout.views(model), None, batch, out, objective)

    def _stacked_gradient(
        self, views: dict[str, Tensor], stacked: int | None, batch: Batch, out: Tensor, objective: Objective | None
    ) -> Tensor:
        loss, arguments, in_dims = self._call(views, stacked, batch, objective)
        with self._convolutions():
            gradients, meter = vmap(grad(loss, has_aux=True), in_dims=in_dims)(*arguments)
        self._lay_down(gradients, out)
        return torch.as_tensor(meter).detach()

    def _call(
        self, views: dict[str, Tensor], stacked: int | None, batch: Batch, objective: Objective | None
    ) -> tuple[Callable[..., tuple[Tensor, Tensor]], tuple[Any, ...], tuple[Any, ...]]:
        """The loss of rows, what it is given, and along which axis of that the rows lie."""
        beside = batch.beside
        further = objective.inputs if objective is not None else {}
        arguments = (views, batch.inputs, batch.targets, batch.weights, beside, further)
        of_rows = {name: None if name == "frozen" else 0 for name in beside}
        in_dims = (stacked, 0, 0, None if batch.weights is None else 0, of_rows or None, 0 if further else None)
        return partial(self._loss, objective, batch.training), arguments, in_dims

    def _product(self, parameters: Tensor, vectors: Tensor, batch: Batch, objective: Objective | None) -> Tensor:
        products = torch.empty_like(parameters)

        def of_rows(part: slice) -> None:
            views = self.layout.views(parameters[part])
            loss, arguments, in_dims = self._call(views, 0, batch.rows(part), _rows_of(objective, part))

            def along(views: dict[str, Tensor], vector: dict[str, Tensor], *others: Any) -> Tensor:
                gradients, _ = grad(loss, has_aux=True)(views, *others)
                return torch.stack([(gradients[name] * vector[name]).sum() for name in views]).sum()

            with self._convolutions():
                found = vmap(grad(along), in_dims=(0, 0, *in_dims[1:]))(views, self.layout.views(vectors[part]), *arguments[1:])
            self._lay_down(found, products[part])

        self._in_chunks(len(parameters), of_rows)
        return products

    def _outputs_of_rows(self, parameters: Tensor, inputs: Tensor) -> Outputs:
        def of_rows(part: slice) -> Outputs:
            with self._convolutions():
                logits, features = vmap(self._logits_and_features)(self.layout.whole_views(parameters[part]), inputs[part])
            return Outputs(logits, features)

        parts = self._in_chunks(len(parameters), of_rows)
        return Outputs(torch.cat([part.logits for part in parts]), torch.cat([part.features for part in parts]))

    def _logits_and_features(self, views: dict[str, Tensor], inputs: Tensor) -> tuple[Tensor, Tensor]:
        outputs = self._outputs(views, inputs)
        return outputs.logits, outputs.features

    def _lay_down(self, gradients: dict[str, Tensor], out: Tensor) -> None:
        for name, place in self.layout.views(out).items():
            place.copy_(gradients[name])
        if self.precision.loss_scale != 1:
            out.mul_(1 / self.precision.loss_scale)

    def _convolutions(self) -> AbstractContextManager[object]:
        return _ConvolutionsAsProducts() if self.im2col else nullcontext()

    def _logits(self, models: Tensor, inputs: Tensor) -> Tensor:
        if len(models) == 1:
            return self._forward(models[0], inputs)[None]
        with self._convolutions():
            logits: Tensor = vmap(self._forward, in_dims=(0, None))(models, inputs)
        return logits


class Im2colEngine(StackedEngine):
    """All rows in one call, convolutions as matrix products over unfolded images."""

    im2col = True


class _ConvolutionsAsProducts(TorchFunctionMode):
    """Turns `conv2d` into im2col and a matrix product, which stacks into a `bmm`; a stack of convolutions would be a grouped one."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in (torch.conv2d, F.conv2d):
            return convolution_as_product(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


def convolution_as_product(
    inputs: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Tensor:
    """`F.conv2d` of [n, in, height, width] by one matrix product over the unfolded images."""
    if groups != 1 or isinstance(padding, str):
        return F.conv2d(inputs, weight, bias, stride, padding, dilation, groups)
    stride, padding, dilation = (value if isinstance(value, Sequence) else (value, value) for value in (stride, padding, dilation))
    kernel = tuple(weight.shape[2:])
    columns = F.unfold(inputs, kernel, dilation, padding, stride)  # [n, in * kernel, places]
    height, width = (
        (size + 2 * padding[side] - dilation[side] * (kernel[side] - 1) - 1) // stride[side] + 1
        for side, size in enumerate(inputs.shape[2:])
    )
    out = weight.flatten(1) @ columns
    if bias is not None:
        out = out + bias[:, None]
    return out.view(*out.shape[:-1], height, width)


def check_batch(layout: Layout, batch_size: int, samples_at_once: int) -> None:
    """Refuse to divide batches of which a model takes statistics.

    Raises:
        UserError: a batch is larger than what is computed at once.
    """
    require(
        not layout.statistics.names or batch_size <= samples_at_once,
        f"batch_size={batch_size}: BatchNorm takes statistics of whole batches, and {samples_at_once} samples of a batch are computed at "
        f"once, or fit into memory; choose batch_size={samples_at_once} or less, or a model with GroupNorm",
    )


def score(logits: Tensor, targets: Tensor) -> Tensor:
    """Summed loss, correct predictions and number of targets, [models, 3], of logits [models, n, ...] for targets [n, ...]."""
    targets = targets.expand(len(logits), *targets.shape)
    totals = torch.empty(len(logits), METER_WIDTH, dtype=torch.float64, device=logits.device)
    totals[:, 0] = _losses(logits, targets).flatten(1).sum(1)
    totals[:, 1] = (logits.argmax(-1) == targets).flatten(1).sum(1)
    totals[:, 2] = (targets >= 0).flatten(1).sum(1)
    return totals


@contextmanager
def _features_of(module: nn.Module, head: str | None) -> Iterator[list[Tensor]]:
    """Notes what goes into the layer `head` of a module."""
    features: list[Tensor] = []
    if head is None:
        yield features
        return
    handle = module.get_submodule(head).register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    try:
        yield features
    finally:
        handle.remove()


def _rows_of(objective: Objective | None, part: slice) -> Objective | None:
    return None if objective is None else objective.rows(part)


def _losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropies [...] of logits [..., classes]; 0 where the target is negative."""
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="none", ignore_index=-100).view(targets.shape)


def _sample_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """The mean loss of each sample's targets, [B]."""
    losses = _losses(logits, targets)
    return losses if losses.dim() == 1 else losses.sum(1) / (targets >= 0).sum(1).clamp(min=1)


def _squares(logits: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
    """The sum of the squared losses of the samples that count."""
    squares = _sample_losses(logits.detach(), targets).square()
    return squares.sum() if weights is None else (squares * weights).sum()


def _target_mask(targets: Tensor, weights: Tensor | None) -> Tensor | None:
    """How much each target of a row's batch counts, of its shape; None where all count alike. weights: [B]."""
    if targets.dim() == 1:
        return weights
    present = targets >= 0
    return present if weights is None else present * weights[:, None]


def _count(batch: Batch) -> Tensor | int:
    """How many targets of each row's batch count: [rows, 1], or one number for all rows."""
    if batch.targets.dim() == 2:
        return batch.targets.shape[1] if batch.weights is None else batch.weights.sum(1, keepdim=True).clamp(min=1)
    present = (batch.targets >= 0).sum(2).to(batch.meter.dtype)
    return (present if batch.weights is None else present * batch.weights).sum(1, keepdim=True).clamp(min=1)


def count_targets(targets: Tensor, weights: Tensor) -> Tensor:
    """How many targets [rows, B] or [rows, B, positions] count in each row, by the weights [rows, B] of samples: [rows, 1]."""
    present = weights if targets.dim() == 2 else (targets >= 0).sum(2) * weights
    return present.sum(1, keepdim=True)


def _stream(device: torch.device) -> int:
    """What tells streams that work side by side apart; 0 on a CPU."""
    return int(torch.cuda.current_stream().cuda_stream) if device.type == "cuda" else 0


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory has run out: on a GPU, in the allocator of the CPU, or in oneDNN, whose words these are."""
    said = ("can't allocate memory", "could not create a memory object", "could not create a primitive")
    return isinstance(error, torch.OutOfMemoryError) or (any(text in str(error) for text in said) and "descriptor" not in str(error))


def _even_parts(count: int, most: int) -> list[slice]:
    """0..count-1 in as few parts of at most `most` as possible, of equal size (+-1)."""
    parts = -(-count // most)
    borders = [count * part // parts for part in range(parts + 1)]
    return [slice(start, stop) for start, stop in pairwise(borders)]
