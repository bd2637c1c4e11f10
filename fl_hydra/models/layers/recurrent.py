"""A stack of LSTM layers whose rows can be trained in one call.

`torch.nn.LSTM` has no batching rule: under `torch.func.vmap` it falls apart into a loop, and its cuDNN kernel cannot be taken at all.
Here a layer is an `autograd.Function` with a hand-written pass forward and backward through time over many models at once. On a GPU
the arithmetic between its products is the kernel of `torch.nn.LSTMCell`, over the samples of all models. On a CPU it is oneDNN's
layer, the one that `torch.nn.LSTM` takes, model after model: no faster one can be written in PyTorch's operations.
"""

# mypy: disable-error-code="no-untyped-call"
# (`Function.apply`, `unflatten` and others of torch carry no types.)

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.func import vjp
from torch.utils.flop_counter import register_flop_formula

CPU_CHUNK, GPU_CHUNK = 2**18, 2**26
"""Gate values that are prepared at once: on a CPU, what stays in its cache until the steps that need it."""

fused_cell, fused_cell_backward = torch.ops.aten._thnn_fused_lstm_cell, torch.ops.aten._thnn_fused_lstm_cell_backward_impl
"""What `torch.nn.LSTMCell` launches on a GPU, forward and backward: gates in the order i, f, g, o."""

ONEDNN_LSTM = 2
"""The kind of layer, as oneDNN's bindings count them."""


class LSTM(nn.Module):
    """`torch.nn.LSTM(inputs, hidden, layers, batch_first=True)` from a zero state, without the state at the end.

    Names, shapes, order and initial values of the parameters are those of `torch.nn.LSTM`, gates in its order i, f, g, o. In a
    lower precision, products are computed in it, and the cell state and the gates' nonlinearities in fp32.

    Args:
        inputs: numbers of one position.
        hidden: units of each layer.
        layers: how many.
    """

    def __init__(self, inputs: int, hidden: int, layers: int = 1) -> None:
        super().__init__()
        self.layers = layers
        bound = 1 / math.sqrt(hidden)
        for layer in range(layers):
            width = hidden if layer else inputs
            shapes = {
                "weight_ih": (4 * hidden, width),
                "weight_hh": (4 * hidden, hidden),
                "bias_ih": (4 * hidden,),
                "bias_hh": (4 * hidden,),
            }
            for name, shape in shapes.items():
                self.register_parameter(f"{name}_l{layer}", nn.Parameter(torch.empty(shape).uniform_(-bound, bound)))

    def forward(self, inputs: Tensor) -> Tensor:
        """The outputs of the last layer at every position: [n, T, inputs] -> [n, T, hidden]."""
        steps = inputs.transpose(0, 1)
        for layer in range(self.layers):
            weight_ih, weight_hh, bias_ih, bias_hh = (
                getattr(self, f"{name}_l{layer}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
            steps = lstm_layer(steps, weight_ih, weight_hh, bias_ih + bias_hh)
        return steps.transpose(0, 1)


def lstm_layer(inputs: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias: Tensor) -> Tensor:
    """The outputs of one layer from a zero state: inputs [T, n, in] -> [T, n, H].

    It can be differentiated twice, and batched by `torch.func.vmap` in any nesting. What it keeps for the backward pass it keeps only where
    gradients are recorded.

    Args:
        inputs: [T, n, in].
        weight_ih: [4 H, in], gates in the order i, f, g, o.
        weight_hh: [4 H, H].
        bias: [4 H], the sum of both biases.
    """
    device = inputs.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        inputs, weight_ih, weight_hh, bias = (tensor.to(dtype) for tensor in (inputs, weight_ih, weight_hh, bias))
    with torch.autocast(device, enabled=False):
        outputs: Tensor = _Layer.apply(inputs[None], weight_ih[None], weight_hh[None], bias[None], torch.is_grad_enabled())[0]
    return outputs[0]


# In what follows, G models are computed at once, each on B samples: inputs [G, T, B, in], weights [G, 4 H, in] and [G, 4 H, H],
# bias [G, 4 H].


class _Layer(Function):
    """(inputs, weights, bias, keep) -> outputs [G, T, B, H], gates [G, T, B, 4 H] and cells [G, T, B, H]; without `keep` those are empty.

    oneDNN gives its workspaces [G, bytes] instead of the gates, and the last cells [G, B, H].
    """

    @staticmethod
    def forward(inputs: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias: Tensor, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
        return passes(inputs)[0](inputs, weight_ih, weight_hh, bias, keep)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        *given, ctx.keep = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*given, *output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None, *unused: None) -> tuple[Tensor | None, ...]:
        if gradient is None:
            return None, None, None, None, None
        if not ctx.keep:
            raise RuntimeError("the layer was computed under torch.no_grad(), which keeps nothing for a backward pass")
        # Where nobody asks for the gradient's own gradient, it needs no node in a graph.
        compute = _LayerBackward.apply if torch.is_grad_enabled() else _LayerBackward.forward
        of_inputs, of_weight_ih, of_weight_hh, of_bias = compute(gradient, *ctx.saved_tensors, 1)
        return of_inputs, of_weight_ih[:, 0], of_weight_hh[:, 0], of_bias[:, 0], None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, ...]:
        rows, (inputs, *weights, keep), (dim, *weight_dims, _) = info.batch_size, args, in_dims
        if all(weight_dim is None for weight_dim in weight_dims) and not runs_on_onednn(
            inputs
        ):  # the rows are further samples of one model
            outputs = _Layer.apply(_into(inputs, dim, 2, rows), *weights, keep)
            return tuple(output.unflatten(2, (rows, -1)) for output in outputs), (2, 2, 2)
        outputs = _Layer.apply(*(_into(tensor, dim, 0, rows) for tensor, dim in zip(args[:-1], in_dims[:-1], strict=True)), keep)
        return tuple(output.unflatten(0, (rows, -1)) for output in outputs), (0, 0, 0)


class _LayerBackward(Function):
    """(gradient of the outputs, inputs, weights, bias, what `_Layer` gave, K) -> gradients.

    Those of the weights and the bias are taken for each K-th part of the samples on its own: [G, K, ...].
    """

    @staticmethod
    def forward(gradient: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        *layer, parts = args
        return passes(gradient)[1](gradient, _Computed(*layer), parts)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.parts = inputs[-1]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[:5])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        # Rarely needed, so by autograd through the same layer in plain operations, as a function of what `_Layer` was given.
        gradient, inputs, *weights = ctx.saved_tensors
        parts = ctx.parts

        def first(gradient: Tensor, inputs: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
            each = (weight.unsqueeze(1).expand(-1, parts, *weight.shape[1:]) for weight in weights)
            samples, of_samples = (tensor.unflatten(2, (parts, -1)) for tensor in (inputs, gradient))
            of_inputs, *of_weights = vjp(_plain, samples, *each)[1](of_samples)
            return of_inputs.flatten(2, 3), *of_weights

        values, pull, *_ = vjp(first, gradient, inputs, *weights)
        given = tuple(torch.zeros_like(value) if g is None else g for value, g in zip(values, gradients, strict=True))
        return *pull(given), None, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, ...]:
        rows, parts = info.batch_size, args[-1]
        if all(dim is None for dim in in_dims[2:5]) and not runs_on_onednn(args[0]):
            of_samples = (0, 1, 5, 6, 7)
            merged = [_into(args[i], in_dims[i], 2, rows) if i in of_samples else args[i] for i in range(8)]
            of_inputs, *of_weights = _LayerBackward.apply(*merged, rows * parts)
            return (of_inputs.unflatten(2, (rows, -1)), *(one.unflatten(1, (rows, -1)) for one in of_weights)), (2, 1, 1, 1)
        merged = [_into(tensor, dim, 0, rows) for tensor, dim in zip(args[:-1], in_dims[:-1], strict=True)]
        return tuple(one.unflatten(0, (rows, -1)) for one in _LayerBackward.apply(*merged, parts)), (0, 0, 0, 0)


class _Computed(NamedTuple):
    """A layer after its forward pass: what `_Layer` was given, and what it gave."""

    inputs: Tensor
    weight_ih: Tensor
    weight_hh: Tensor
    bias: Tensor
    outputs: Tensor
    gates: Tensor
    cells: Tensor


def passes(given: Tensor) -> tuple[Callable[..., tuple[Tensor, Tensor, Tensor]], Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]]:
    """The passes forward and backward for tensors like this one."""
    if given.is_cuda:
        return forward_fused, backward_fused
    return (_forward_onednn, _backward_onednn) if runs_on_onednn(given) else (_forward, _backward)


def _into(tensor: Tensor, dim: int | None, place: int, rows: int) -> Tensor:
    """The rows along `dim` merged into the dimension at `place`, as its outer part."""
    tensor = (
        tensor.unsqueeze(place).expand(*tensor.shape[:place], rows, *tensor.shape[place:]) if dim is None else tensor.movedim(dim, place)
    )
    return tensor.flatten(place, place + 1)


def _rolled(weight: Tensor, by: int) -> Tensor:
    """Gates [..., 4 H, n] moved on by so many places; 1 turns i, f, g, o into o, i, f, g."""
    gates: Tensor = weight.unflatten(-2, (4, -1))
    return gates.roll(by, -3).flatten(-3, -2)


def _multiply(out: Tensor, left: Tensor, right: Tensor) -> None:
    """out [G, n, m] += left [G, n, k] @ right [G, k, m], where `out` may have a higher precision.

    Calls with `out=` are those that a counter of operations sees.
    """
    if out.dtype != left.dtype:
        out.add_(torch.mm(left[0], right[0]) if len(out) == 1 else torch.bmm(left, right))
    elif len(out) == 1:
        torch.addmm(out[0], left[0], right[0], out=out[0])
    else:
        torch.baddbmm(out, left, right, out=out)


def _chunks(steps: int, step: int, device: torch.device) -> list[slice]:
    """The steps in runs of what is prepared at once; `step` is how many gate values each has."""
    size = max(1, (CPU_CHUNK if device.type == "cpu" else GPU_CHUNK) // step)
    return [slice(start, min(start + size, steps)) for start in range(0, steps, size)]


# In plain operations, gates are computed in the order o, i, f, g: then three neighbours are sigmoids, and three have the gradient of
# the cell.


def _forward(inputs: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias: Tensor, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    models, steps, samples = inputs.shape[:3]
    hidden = weight_hh.shape[-1]
    exact = torch.promote_types(inputs.dtype, torch.float32)
    weight_ih, weight_hh, bias = _rolled(weight_ih, 1).mT, _rolled(weight_hh, 1).mT.contiguous(), _rolled(bias[..., None], 1).mT
    outputs = inputs.new_empty(models, steps, samples, hidden)
    gates = inputs.new_empty(models, steps, samples, 4 * hidden if keep else 0, dtype=exact)
    cells = inputs.new_empty(models, steps, samples, hidden if keep else 0, dtype=exact)
    squashed = inputs.new_empty(models, samples, hidden, dtype=exact)
    cell = torch.empty_like(squashed)
    for chunk in _chunks(steps, models * samples * 4 * hidden, inputs.device):
        place = gates[:, chunk] if keep else inputs.new_empty(models, chunk.stop - chunk.start, samples, 4 * hidden, dtype=exact)
        projected = bias, inputs[:, chunk].reshape(models, -1, inputs.shape[-1]), weight_ih
        if exact == inputs.dtype:
            torch.baddbmm(*projected, out=place.flatten(1, 2))
        else:
            place.copy_(torch.baddbmm(*projected).view(place.shape))
        for step in range(chunk.start, chunk.stop):
            gate = place[:, step - chunk.start]
            if step:
                _multiply(gate, outputs[:, step - 1], weight_hh)
            gate[..., : 3 * hidden].sigmoid_()
            gate[..., 3 * hidden :].tanh_()
            o, i, f, g = gate.split(hidden, -1)
            before, cell = cell, cells[:, step] if keep else cell
            if step:
                torch.mul(f, before, out=cell)
                cell.addcmul_(i, g)
            else:
                torch.mul(i, g, out=cell)
            torch.tanh(cell, out=squashed)
            torch.mul(o, squashed, out=outputs[:, step])
    return outputs, gates, cells


def _backward(gradient: Tensor, layer: _Computed, parts: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    inputs, weight_ih, weight_hh, _, outputs, gates, cells = layer
    models, steps, samples, hidden = outputs.shape
    rolled = _rolled(weight_hh, 1)
    of_gates = torch.empty_like(gates, dtype=inputs.dtype)  # before their nonlinearities
    of_output = torch.empty_like(cells[:, 0])
    of_cell = torch.zeros_like(of_output)
    for chunk in reversed(_chunks(steps, models * samples * 4 * hidden, inputs.device)):
        # What the gradients of the output and of the cell are multiplied with depends on no gradient: for many steps at once.
        o, i, f, g = gates[:, chunk].split(hidden, -1)
        squashed = cells[:, chunk].tanh()
        factors = gates[:, chunk].square()  # s' = s - s^2, tanh' = 1 - tanh^2
        factors[..., : 3 * hidden] = gates[:, chunk, :, : 3 * hidden] - factors[..., : 3 * hidden]
        of_o, of_i, of_f, of_g = factors.split(hidden, -1)
        of_o.mul_(squashed)
        of_i.mul_(g)
        if chunk.start:
            of_f.mul_(cells[:, chunk.start - 1 : chunk.stop - 1])
        else:
            of_f[:, 1:].mul_(cells[:, : chunk.stop - 1])
            of_f[:, 0].zero_()
        torch.addcmul(i, i, of_g, value=-1, out=of_g)
        into_cell = squashed.square_().mul_(o).neg_().add_(o)
        for step in range(chunk.stop - 1, chunk.start - 1, -1):
            at = step - chunk.start
            of_output.copy_(gradient[:, step])
            if step + 1 < steps:
                _multiply(of_output, of_gates[:, step + 1], rolled)
            of_cell.addcmul_(of_output, into_cell[:, at])
            torch.mul(of_output, factors[:, at, :, :hidden], out=of_gates[:, step, :, :hidden])
            torch.mul(
                of_cell.unsqueeze(-2),
                factors[:, at, :, hidden:].unflatten(-1, (3, hidden)),
                out=of_gates[:, step, :, hidden:].unflatten(-1, (3, hidden)),
            )
            of_cell.mul_(f[:, at])

    of_inputs, *of_weights = _products(of_gates, inputs, _rolled(weight_ih, 1), outputs, parts)
    of_weight_ih, of_weight_hh, of_bias = (_rolled(one, -1) for one in of_weights)
    return of_inputs, of_weight_ih, of_weight_hh, of_bias[..., 0]


def _products(of_gates: Tensor, inputs: Tensor, weight_ih: Tensor, outputs: Tensor, parts: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """From the gradient of the gates [G, T, B, 4 H], those of the inputs and, of each part, the weights and bias [G, K, 4 H, 1]."""
    models = len(inputs)

    def by_part(tensor: Tensor) -> Tensor:
        """[G, T, K n, m] -> [G K, T n, m]."""
        tensor = tensor.unflatten(2, (parts, -1)).transpose(1, 2)
        return tensor.reshape(models * parts, -1, tensor.shape[-1])

    of_inputs = torch.bmm(of_gates.flatten(1, 2), weight_ih).view(inputs.shape)
    each = by_part(of_gates)
    of_weight_ih = torch.bmm(each.mT, by_part(inputs))
    of_weight_hh = torch.bmm(by_part(of_gates[:, 1:]).mT, by_part(outputs[:, :-1]))
    of_bias = each.sum(1)[..., None]
    of_weight_ih, of_weight_hh, of_bias = (one.unflatten(0, (models, parts)) for one in (of_weight_ih, of_weight_hh, of_bias))
    return of_inputs, of_weight_ih, of_weight_hh, of_bias


# On a GPU a step is a product and one kernel of `torch.nn.LSTMCell`, which takes [G B, 4 H] and so reads steps of all models that lie
# together: what is kept for the backward pass is laid out step by step, [T, G, B, ...], and seen as [G, T, B, ...].


def forward_fused(inputs: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias: Tensor, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """All steps forward, each with :data:`fused_cell`: outputs, and, if they are to be kept, gates and cells."""
    models, steps, samples = inputs.shape[:3]
    hidden = weight_hh.shape[-1]
    exact = torch.promote_types(inputs.dtype, torch.float32)
    outputs: list[Tensor] = []
    gates: list[Tensor] = []
    cells: list[Tensor] = []
    cell = inputs.new_zeros(models * samples, hidden, dtype=exact)
    recurrent = inputs.new_zeros(models, samples, 4 * hidden, dtype=exact)
    for chunk in _chunks(steps, models * samples * 4 * hidden, inputs.device):
        projected = torch.baddbmm(bias.unsqueeze(1), inputs[:, chunk].reshape(models, -1, inputs.shape[-1]), weight_ih.mT)
        for step in projected.to(exact).unflatten(1, (-1, samples)).transpose(0, 1).contiguous():
            if outputs:
                recurrent = torch.bmm(outputs[-1], weight_hh.mT).to(exact)
            output, cell, gate = fused_cell(step.flatten(0, 1), recurrent.flatten(0, 1), cell)
            outputs.append(output.to(inputs.dtype).view(models, samples, hidden))
            if keep:
                gates.append(gate)
                cells.append(cell)

    def laid_out(values: list[Tensor]) -> Tensor:
        together: Tensor = torch.stack(values) if keep else cell.new_empty(steps, models * samples, 0)
        by_model: Tensor = together.unflatten(1, (models, samples)).transpose(0, 1)
        return by_model

    return torch.stack(outputs, 1), laid_out(gates), laid_out(cells)


def backward_fused(gradient: Tensor, layer: _Computed, parts: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All steps back, each with :data:`fused_cell_backward`: gradients of inputs, both weights, and the bias."""
    inputs, weight_ih, weight_hh, _, outputs, gates, cells = layer
    models, steps, samples, hidden = outputs.shape
    gates, cells = (kept.transpose(0, 1).reshape(steps, models * samples, -1) for kept in (gates, cells))
    of_outputs = gradient.transpose(0, 1).to(cells.dtype, copy=True, memory_format=torch.contiguous_format)
    of_gates: list[Tensor] = []
    of_cell: Tensor | None = None
    for step in reversed(range(steps)):
        if of_gates:
            _multiply(of_outputs[step], of_gates[-1], weight_hh)
        before = cells[step - 1] if step else torch.zeros_like(cells[0])
        of_gate, of_cell, _ = fused_cell_backward(of_outputs[step].flatten(0, 1), of_cell, before, cells[step], gates[step], False)
        of_gates.append(of_gate.to(inputs.dtype).view(models, samples, 4 * hidden))
    of_inputs, of_weight_ih, of_weight_hh, of_bias = _products(torch.stack(of_gates[::-1], 1), inputs, weight_ih, outputs, parts)
    return of_inputs, of_weight_ih, of_weight_hh, of_bias[..., 0]


def runs_on_onednn(inputs: Tensor) -> bool:
    """Whether `torch.nn.LSTM` would take oneDNN's layer."""
    if inputs.device.type != "cpu" or not torch.backends.mkldnn.is_available() or not torch.backends.mkldnn.enabled:
        return False
    if inputs.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return inputs.dtype == torch.float32


def _forward_onednn(inputs: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias: Tensor, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    hidden = weight_hh.shape[-1]
    zero, none = inputs.new_zeros(inputs.shape[2], hidden), torch.zeros_like(bias[0])

    def layers() -> Iterator[tuple[Tensor, ...]]:
        for model in zip(*(tensor.detach() for tensor in (inputs.contiguous(), weight_ih, weight_hh, bias)), strict=True):
            with torch.set_grad_enabled(keep):  # without, there is no workspace
                output, _, cell, workspace = torch.ops.aten.mkldnn_rnn_layer(
                    *model, none, zero, zero, False, [], ONEDNN_LSTM, hidden, 1, True, False, False, keep
                )
            yield output, workspace if keep else cell.new_empty(0), cell

    outputs, workspaces, cells = _stacked(layers(), len(inputs))
    return outputs, workspaces, cells


def _backward_onednn(gradient: Tensor, layer: _Computed, parts: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    inputs, weight_ih, weight_hh, bias, outputs, workspaces, cells = layer
    assert parts == 1
    hidden = weight_hh.shape[-1]
    zero, none = torch.zeros_like(cells[0]), torch.zeros_like(bias[0])
    layers = (
        torch.ops.aten.mkldnn_rnn_layer_backward(
            x, w_ih, w_hh, b, none, zero, zero, output, output[-1], cell, of_output, None, None,
            False, ONEDNN_LSTM, hidden, 1, True, True, False, [], False, workspace,
        )[:4]
        for x, w_ih, w_hh, b, output, cell, of_output, workspace in zip(
            inputs.contiguous(), weight_ih, weight_hh, bias, outputs, cells, gradient.contiguous(), workspaces, strict=True
        )
    )  # fmt: skip
    of_inputs, *of_weights = _stacked(layers, len(inputs))
    of_weight_ih, of_weight_hh, of_bias = (one.unsqueeze(1) for one in of_weights)
    return of_inputs, of_weight_ih, of_weight_hh, of_bias


def _stacked(models: Iterable[tuple[Tensor, ...]], count: int) -> list[Tensor]:
    """The tensors of each model, stacked as they come: they are large."""
    stacks: list[Tensor] = []
    for place, tensors in enumerate(models):
        if count == 1:
            return [tensor[None] for tensor in tensors]
        if not place:
            stacks = [tensor.new_empty(count, *tensor.shape) for tensor in tensors]
        for stack, tensor in zip(stacks, tensors, strict=True):
            stack[place] = tensor
    return stacks


@register_flop_formula(torch.ops.aten.mkldnn_rnn_layer)
def _forward_flops(inputs: tuple[int, ...], weight_ih: tuple[int, ...], *args: Any, **keywords: Any) -> int:
    """What `_forward` computes: the first step starts from zeros."""
    steps, samples, width = inputs
    return 2 * samples * weight_ih[0] * (steps * width + (steps - 1) * weight_ih[0] // 4)


@register_flop_formula(torch.ops.aten.mkldnn_rnn_layer_backward)
def _backward_flops(inputs: tuple[int, ...], weight_ih: tuple[int, ...], *args: Any, **keywords: Any) -> int:
    return 2 * _forward_flops(inputs, weight_ih)


def _plain(inputs: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias: Tensor) -> Tensor:
    """The layer in plain operations, each part with its own weights: inputs [G, T, K, n, in], weights [G, K, ...] -> [G, T, K, n, H]."""
    cell = output = inputs.new_zeros(*inputs[:, 0].shape[:-1], weight_hh.shape[-1])
    outputs = []
    for step in inputs.unbind(1):
        gates = step @ weight_ih.mT + output @ weight_hh.mT + bias.unsqueeze(-2)
        i, f, g, o = gates.chunk(4, -1)
        cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
        output = o.sigmoid() * cell.tanh()
        outputs.append(output)
    return torch.stack(outputs, 1)


class Embedding(nn.Embedding):
    """`nn.Embedding` of any integers, whose gradient is summed in fp32 at least.

    A frequent character is met hundreds of times in a batch, which bf16's own sums do not survive.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Integers [...] -> [..., width]."""
        ids = input if input.dtype in (torch.int32, torch.int64) else input.to(torch.int32)
        found: Tensor = _Lookup.apply(ids, self.weight)
        return found


class _Lookup(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(ids: Tensor, table: Tensor) -> Tensor:
        return F.embedding(ids, table)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.count = len(inputs[1])
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        (ids,) = ctx.saved_tensors
        exact = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
        if exact.is_cuda:
            # As a product: torch sorts the characters, and where rows are branches of one graph its sums have other bits in each run.
            chosen = ids.flatten()[:, None] == torch.arange(ctx.count, dtype=ids.dtype, device=ids.device)
            return None, (chosen.to(exact.dtype).mT @ exact.flatten(0, -2)).to(gradient.dtype)
        return None, torch.ops.aten.embedding_dense_backward(exact, ids, ctx.count, -1, False).to(gradient.dtype)


class Last(nn.Module):
    """The last position: [n, T, width] -> [n, width]."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.transpose(0, 1)[-1]  # as the layer lays it out, so that its gradient is made in that order and not copied
