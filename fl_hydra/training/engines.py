"""Engines compute the gradients of rows. They are interchangeable and tested against each other.

- `loop_engine.py`: one row after the other through the ordinary module and autograd; the reference.
- `stacked_engine.py`: all rows in one call (`torch.func.vmap`), with convolutions as grouped convolutions or as matrix products.

How an engine's steps are launched, one by one or as replayed CUDA graphs, is :mod:`fl_hydra.training.graphs`.
"""

from __future__ import annotations

import copy
import gc
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from fl_hydra.errors import require
from fl_hydra.seams.layout import Layout
from fl_hydra.seams.losses import cross_entropies, target_mask
from fl_hydra.seams.rows import GRADIENTS, METER_WIDTH, OUTPUTS, PRODUCTS, Batch, Outputs
from fl_hydra.training.batch_layers import BatchLayers
from fl_hydra.training.losses import Objective, counts_of, score, summed_squares
from fl_hydra.training.memory import out_of_memory
from fl_hydra.training.precision import Precision
from fl_hydra.training.samples import Samples

GPU_BRANCHES = 16
"""Blocks that are captured in parallel as branches of one graph."""

CPU_EVALUATION_BATCH, GPU_EVALUATION_BATCH = 128, 10_000
"""Samples of one evaluation call: few enough for a CPU's cache; on a GPU a usual test set as a whole."""

CPU_GRADIENT_BATCH = 512
"""Samples of a row's batch that a CPU computes at once: larger batches take less time and memory in parts than as a whole."""


class Engine(ABC):
    """Gradients and evaluations of many models of one architecture.

    Args:
        module: the architecture; its own parameters are never read.
        layout: of the module's parameters.
        precision: of rows and of computation.
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
        """Samples of a row's batch that are computed at once; larger batches are accumulated. Halved when memory runs out."""
        self.squares = False
        """Whether meters have a fourth figure, the sum of squared sample losses."""

    def _forward(self, vector: Tensor | dict[str, Tensor], inputs: Tensor, layers: BatchLayers | None = None) -> Tensor:
        """Logits of one model, given as a whole vector or as tensors by name. layers: for a pass in training; None: evaluation mode."""
        views = self.layout.whole_views(vector) if isinstance(vector, Tensor) else vector
        if self.precision.compute is not None:  # by hand: autocast does not recognise parameters under nested transforms
            views = self._cast(views)
        with self.precision.active(self.device), self._passing(layers):
            logits: Tensor = functional_call(self._module(layers), views, (inputs,))
        return logits.to(self.precision.master)

    def _cast(self, views: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a model in the precision of computation; running statistics are not cast."""
        return {name: view if name in self._uncast else view.to(self.precision.compute) for name, view in views.items()}

    def _module(self, layers: BatchLayers | None) -> nn.Module:
        return self._in_evaluation if layers is None else self._architecture

    def _passing(self, layers: BatchLayers | None) -> AbstractContextManager[object]:
        if not self.layout.modal:
            return nullcontext()
        return BatchLayers(self.precision.master) if layers is None else layers

    def _beside(
        self, beside: Mapping[str, Tensor], weights: Tensor | None, training: bool, fixed: bool = False
    ) -> tuple[dict[str, Tensor], BatchLayers | None]:
        """One row's inputs besides parameters: tensors by name, and the layers of a pass in training; None for evaluation."""
        running = self.layout.statistics.views(beside["statistics"]) if "statistics" in beside else {}
        others = self.layout.frozen.views(beside["frozen"]) if "frozen" in beside else {}
        modal = training and self.layout.modal
        layers = BatchLayers(self.precision.master, running, weights, beside.get("draws"), fixed) if modal else None
        return running | others, layers

    def _outputs(self, vector: Tensor | dict[str, Tensor], inputs: Tensor, layers: BatchLayers | None = None) -> Outputs:
        with features_of(self._module(layers), self.layout.head) as features:
            logits = self._forward(vector, inputs, layers)
        if not features:
            features.append(logits[..., :0])
        return Outputs(logits, features[-1].to(self.precision.master))

    @staticmethod
    def _mean_loss(logits: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        """Mean cross-entropy over the targets that count; 0 if there are none."""
        mask = target_mask(targets, weights)
        if mask is None:
            return F.cross_entropy(logits, targets)
        return (cross_entropies(logits, targets) * mask).sum() / mask.sum().clamp(min=1)

    def _meter(self, logits: Tensor, targets: Tensor, weights: Tensor | None, mean_loss: Tensor, layers: BatchLayers | None) -> Tensor:
        """Summed loss, number of correct predictions, number of targets, and, if `squares`, summed squared losses: [3 or 4], followed by
        the batch's statistics if the model has running ones."""
        correct = logits.argmax(-1) == targets
        mask = target_mask(targets, weights)
        squares = [summed_squares(logits, targets, weights)] if self.squares else []
        if mask is None:
            meter = torch.stack([mean_loss * len(targets), correct.sum(), torch.full_like(mean_loss, len(targets)), *squares])
        else:
            count = mask.sum()
            meter = torch.stack([mean_loss * count, (correct * mask).sum(), count, *squares])
        return torch.cat([meter, layers.statistics]) if layers is not None and self.layout.statistics.names else meter

    def bind(self, places: Sequence[Tensor]) -> None:
        """Prepare, once, for fixed memory of rows: `places`, each [rows, P], which hold the rows in all rounds."""

    def mark_equal(self, rows: Tensor) -> None:
        """Note that `rows` [rows, P] are copies of one model; valid until they are written to (by their version counter)."""

    def threads(self, rows: int, batch_size: int) -> int:
        """How many CPU threads, each with its own core, share the blocks of a run with this many rows in a round."""
        return 1

    @property
    def branches(self) -> int:
        """How many blocks, of any runs, are trained in parallel as branches of a graph."""
        return 1 if self.device.type == "cpu" else GPU_BRANCHES

    @abstractmethod
    def blocks(self, rows: int, most: int) -> list[slice]:
        """The blocks, of at most `most` rows, into which a run's rows are divided; each takes all its steps before the next."""

    def gradient(self, parameters: Tensor, batch: Batch, objective: Objective | None = None, *, metered: bool = True) -> Tensor:
        """The gradient of each row's mean loss: parameters [rows, P] -> [rows, P], valid until the next call.

        A batch larger than `samples_at_once` gets the weighted sum of the gradients of its parts. The metered gradient also updates the
        running statistics of the batch's rows.

        Args:
            objective: cross-entropy if None. metered: whether it enters the batch's meter.

        Raises:
            TypeError: a gradient of this batch was already metered.
            UserError: the batch would be divided, but the model takes statistics of whole batches.
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
        whole = counts_of(batch)
        for part in even_parts(size, self.samples_at_once):
            piece = batch.samples(part)
            gradient, meter = self._gradient(parameters, piece, None if objective is None else objective.samples(part))
            share = counts_of(piece) / whole
            total.add_(gradient.mul_(share))
            meters.add_(meter)
        return total, meters

    def _check_whole(self, batch: Batch, size: int) -> None:
        if batch.training:
            check_batch(self.layout, size, self.samples_at_once)

    def outputs(self, parameters: Tensor, batch: Batch) -> Outputs:
        """Outputs of the models [rows, P] for each row's batch, in evaluation mode."""
        batch.calls[:, OUTPUTS] += 1
        return self.outputs_of(self.layout.whole(parameters, batch.statistics, batch.frozen), batch.inputs)

    @torch.no_grad()
    def outputs_of(self, parameters: Tensor, inputs: Tensor) -> Outputs:
        """Outputs of whole models [rows, P or more] (:meth:`Layout.whole`) for inputs [rows, B, ...]."""
        parts = [self._outputs_of_rows(parameters, inputs[:, part]) for part in even_parts(inputs.shape[1], self.samples_at_once)]
        if len(parts) == 1:
            return parts[0]
        return Outputs(torch.cat([part.logits for part in parts], 1), torch.cat([part.features for part in parts], 1))

    def product(self, parameters: Tensor, vectors: Tensor, batch: Batch, objective: Objective | None = None) -> Tensor:
        """The Hessian of each row's mean loss at parameters [rows, P] times vectors [rows, P]: [rows, P], in new memory."""
        batch.calls[:, PRODUCTS] += 1
        size = batch.targets.shape[1]
        with _second_derivatives(self.layout.recurrent):
            if size <= self.samples_at_once or (objective is not None and objective.whole):
                return self._product(parameters, vectors, batch, objective)
            self._check_whole(batch, size)
            total, whole = torch.zeros_like(parameters), counts_of(batch)
            for part in even_parts(size, self.samples_at_once):
                piece = batch.samples(part)
                found = self._product(parameters, vectors, piece, None if objective is None else objective.samples(part))
                total.add_(found.mul_(counts_of(piece) / whole))
            return total

    def _divide(self, size: int, error: RuntimeError) -> None:
        """Halve the samples of a batch that are computed at once.

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
        """Whether computing less at once may help: memory ran out, and no graph is being recorded."""
        return out_of_memory(error) and not (self.device.type == "cuda" and torch.cuda.is_current_stream_capturing())

    def _make_room(self, error: RuntimeError) -> None:
        error.__traceback__ = None  # its frames keep tensors alive
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
            which: int64 [n], the samples; None: all.
        """
        totals = torch.zeros(len(models), METER_WIDTH, dtype=torch.float64, device=self.device)
        # Only models of one run in a call: the number of models affects the last bits.
        size = CPU_EVALUATION_BATCH if self.device.type == "cpu" else max(256, GPU_EVALUATION_BATCH // len(models))
        which = torch.arange(len(samples), device=self.device) if which is None else which
        for indices in torch.split(which, size):
            totals += score(self._logits(models, samples.plain(indices)), samples.targets[indices])
        return totals

    @torch.no_grad()
    def losses(self, model: Tensor, samples: Samples, which: Tensor) -> Tensor:
        """For each of some samples, int64 [n], the summed loss of its targets under a whole model [P or more], and their number.

        Returns:
            float64 [n, 2].
        """
        size = CPU_EVALUATION_BATCH if self.device.type == "cpu" else GPU_EVALUATION_BATCH
        found = []
        for indices in torch.split(which, size):
            targets = samples.targets[indices]
            losses = cross_entropies(self._logits(model[None], samples.plain(indices))[0], targets).double()
            found.append(torch.stack([losses.view(len(indices), -1).sum(1), (targets >= 0).view(len(indices), -1).sum(1)], 1))
        return torch.cat(found)


def check_batch(layout: Layout, batch_size: int, samples_at_once: int) -> None:
    """Refuse to divide batches if the model takes statistics of them.

    Raises:
        UserError: a batch has more samples than are computed at once.
    """
    require(
        not layout.statistics.names or batch_size <= samples_at_once,
        f"batch_size={batch_size}: BatchNorm takes statistics of whole batches, and {samples_at_once} samples of a batch are computed at "
        f"once, or fit into memory; choose batch_size={samples_at_once} or less, or a model with GroupNorm",
    )


@contextmanager
def features_of(module: nn.Module, head: str | None) -> Iterator[list[Tensor]]:
    """Records the inputs of the layer `head` of a module."""
    features: list[Tensor] = []
    if head is None:
        yield features
        return
    handle = module.get_submodule(head).register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    try:
        yield features
    finally:
        handle.remove()


@contextmanager
def _second_derivatives(recurrent: bool) -> Iterator[None]:
    """Without cuDNN if there are recurrent layers, of which it has first derivatives alone."""
    before = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = before and not recurrent
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = before


def stream_of(device: torch.device) -> int:
    """A number that identifies the current stream; 0 on a CPU."""
    return int(torch.cuda.current_stream().cuda_stream) if device.type == "cuda" else 0


def even_parts(count: int, most: int) -> list[slice]:
    """0..count-1 in as few parts as possible of at most `most`, of equal size (±1)."""
    parts = -(-count // most)
    borders = [count * part // max(1, parts) for part in range(parts + 1)]
    return [slice(start, stop) for start, stop in pairwise(borders)]
