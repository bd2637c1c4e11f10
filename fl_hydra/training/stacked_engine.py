"""Engines that process all rows in one call (`torch.func.vmap`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, ClassVar, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.overrides import TorchFunctionMode

from fl_hydra.errors import UserError
from fl_hydra.seams.rows import Batch, Outputs
from fl_hydra.training.engines import Engine, even_parts, stream_of
from fl_hydra.training.losses import Objective

T = TypeVar("T")


class StackedEngine(Engine):
    """All rows in one call. Stacked convolutions are grouped ones, unless `im2col` makes them stacked matrix products."""

    im2col: ClassVar[bool] = False

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self._changed = any(isinstance(part, nn.GroupNorm | nn.AdaptiveAvgPool2d) for part in self._architecture.modules())
        """Whether there are layers that :class:`_StackedLayers` changes, besides convolutions."""
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
        return even_parts(rows, most)

    def _gradient(self, parameters: Tensor, batch: Batch, objective: Objective | None) -> tuple[Tensor, Tensor]:
        key = (stream_of(self.device), parameters.shape)
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
        """Do some work for all rows, as many at once as fit into memory."""
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
        """Halve the rows that are processed at once.

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
        fixed: bool,
        views: dict[str, Tensor],
        inputs: Tensor,
        targets: Tensor,
        weights: Tensor | None,
        beside: dict[str, Tensor] | None = None,
        further: dict[str, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """One row's loss and meter. beside: its tensors besides parameters; further: inputs of the objective."""
        layers = None
        if beside:
            others, layers = self._beside(beside, weights, training, fixed)
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
        """Gradients of rows that all equal `model` [P], into `out` [rows, P]; the forward pass is that of one model."""
        return self._stacked_gradient(self.layout.views(model), None, batch, out, objective)

    def _stacked_gradient(
        self, views: dict[str, Tensor], stacked: int | None, batch: Batch, out: Tensor, objective: Objective | None
    ) -> Tensor:
        loss, arguments, in_dims = self._call(views, stacked, batch, objective)
        with self._layers():
            try:
                gradients, meter = vmap(grad(loss, has_aux=True), in_dims=in_dims)(*arguments)
            except RuntimeError as error:
                if "vmap" not in str(error):
                    raise
                reason = " ".join(str(error).split())[:200]
                raise UserError(f"the rows of this model cannot be computed in one call ({reason}); choose engine=loop") from error
        self._lay_down(gradients, out)
        return torch.as_tensor(meter).detach()

    def _call(
        self, views: dict[str, Tensor], stacked: int | None, batch: Batch, objective: Objective | None
    ) -> tuple[Callable[..., tuple[Tensor, Tensor]], tuple[Any, ...], tuple[Any, ...]]:
        """The loss function of rows, its arguments, and the axis of each along which the rows lie."""
        beside = batch.beside
        further = objective.inputs if objective is not None else {}
        loss = partial(self._loss, objective, batch.training, batch.fixed)
        arguments = (views, batch.inputs, batch.targets, batch.weights)
        in_dims = (stacked, 0, 0, None if batch.weights is None else 0)
        if not beside and not further:  # every argument costs time, which matters for small batches
            return loss, arguments, in_dims
        of_rows = {name: None if name == "frozen" else 0 for name in beside}
        return loss, (*arguments, beside, further), (*in_dims, of_rows or None, 0 if further else None)

    def _product(self, parameters: Tensor, vectors: Tensor, batch: Batch, objective: Objective | None) -> Tensor:
        products = torch.empty_like(parameters)

        def of_rows(part: slice) -> None:
            views = self.layout.views(parameters[part])
            loss, arguments, in_dims = self._call(views, 0, batch.rows(part), _rows_of(objective, part))

            def along(views: dict[str, Tensor], vector: dict[str, Tensor], *others: Any) -> Tensor:
                gradients, _ = grad(loss, has_aux=True)(views, *others)
                return torch.stack([(gradients[name] * vector[name]).sum() for name in views]).sum()

            with self._layers():
                found = vmap(grad(along), in_dims=(0, 0, *in_dims[1:]))(views, self.layout.views(vectors[part]), *arguments[1:])
            self._lay_down(found, products[part])

        self._in_chunks(len(parameters), of_rows)
        return products

    def _outputs_of_rows(self, parameters: Tensor, inputs: Tensor) -> Outputs:
        shared = parameters.stride(0) == 0  # one model for all rows, as the server sends it

        def of_rows(part: slice) -> Outputs:
            views = self.layout.whole_views(parameters[0] if shared else parameters[part])
            with self._layers():
                logits, features = vmap(self._logits_and_features, in_dims=(None if shared else 0, 0))(views, inputs[part])
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

    def _layers(self) -> AbstractContextManager[object]:
        return _StackedLayers(self.im2col) if self.im2col or self._changed else nullcontext()

    def _logits(self, models: Tensor, inputs: Tensor) -> Tensor:
        if len(models) == 1:
            return self._forward(models[0], inputs)[None]
        with self._layers():
            logits: Tensor = vmap(self._forward, in_dims=(0, None))(models, inputs)
        return logits


class Im2colEngine(StackedEngine):
    """All rows in one call, convolutions as matrix products over unfolded images."""

    im2col = True


class _StackedLayers(TorchFunctionMode):
    """Changes what `torch.func.vmap` cannot stack, or not well.

    Args:
        im2col: whether `conv2d` is im2col and a matrix product, which stacks into a `bmm`; a stack of convolutions is a grouped one.
    """

    def __init__(self, im2col: bool) -> None:
        super().__init__()
        self._im2col = im2col

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._im2col and function in (torch.conv2d, F.conv2d):
            return convolution_as_product(*args, **(kwargs or {}))
        if function is F.group_norm:  # copies its inputs in their memory format, which vmap refuses for channels_last
            return F.group_norm(args[0].contiguous(), *args[1:], **(kwargs or {}))
        if function is F.adaptive_avg_pool2d and tuple(args[1:]) in ((1,), ((1, 1),)):  # would be done row by row
            return args[0].mean((-2, -1), keepdim=True)
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


def _rows_of(objective: Objective | None, part: slice) -> Objective | None:
    return None if objective is None else objective.rows(part)
