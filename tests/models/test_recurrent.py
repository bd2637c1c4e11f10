"""The LSTM against `torch.nn.LSTM`, over rows, in low precision, and as engines call it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.utils import parameters_to_vector
from torch.utils.flop_counter import FlopCounterMode

from fl_hydra.models.layers import recurrent
from fl_hydra.models.layers.recurrent import LSTM, Embedding
from fl_hydra.models.lstm import character_lstm
from fl_hydra.seams.layout import Layout
from fl_hydra.seams.rows import CALLS, METER_WIDTH, Batch
from fl_hydra.training.engines import Engine
from fl_hydra.training.loop_engine import LoopEngine
from fl_hydra.training.precision import PRECISIONS, Precision
from fl_hydra.training.stacked_engine import StackedEngine
from tests.support.capture import Capturable

INPUTS, HIDDEN, STEPS, SAMPLES = 3, 5, 7, 4

KERNELS = {
    "plain-fp64": (torch.float64, 1e-12),
    "plain-fp32": (torch.float32, 1e-5),
    "onednn-fp32": (torch.float32, 1e-5),
    "fused-fp64": (torch.float64, 1e-12),
    "fused-fp32": (torch.float32, 1e-5),
}
"""Passes through a layer, with a dtype and what is allowed between two ways."""


@pytest.fixture(params=list(KERNELS))
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[torch.dtype, float]:
    dtype, tolerance = KERNELS[request.param]
    if "onednn" in request.param and not torch.backends.mkldnn.is_available():
        pytest.skip("this PyTorch has no oneDNN")
    if "onednn" not in request.param:
        monkeypatch.setattr(recurrent, "runs_on_onednn", lambda inputs: False)
    if "fused" in request.param:
        monkeypatch.setattr(recurrent, "passes", lambda given: (recurrent.forward_fused, recurrent.backward_fused))
        monkeypatch.setattr(recurrent, "fused_cell", cell)
        monkeypatch.setattr(recurrent, "fused_cell_backward", cell_backward)
    monkeypatch.setattr(recurrent, "CPU_CHUNK", 2 * SAMPLES * 4 * HIDDEN)  # some steps at once, and a shorter rest
    return dtype, tolerance


def cell(inputs: Tensor, recurrent: Tensor, before: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """In place of the GPU's kernel, which tests on a GPU hold to the same: outputs, cells, and what the backward pass wants."""
    i, f, g, o = (inputs + recurrent).chunk(4, -1)
    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    after = f * before + i * g
    return o * after.tanh(), after, torch.cat([i, f, g, o], -1)


def cell_backward(
    of_output: Tensor, of_cell: Tensor | None, before: Tensor, after: Tensor, gates: Tensor, bias: bool
) -> tuple[Tensor, Tensor, None]:
    i, f, g, o = gates.chunk(4, -1)
    of_after = of_output * o * (1 - after.tanh() ** 2) + (0 if of_cell is None else of_cell)
    of_gates = (
        of_after * g * i * (1 - i),
        of_after * before * f * (1 - f),
        of_after * i * (1 - g**2),
        of_output * after.tanh() * o * (1 - o),
    )
    return torch.cat(of_gates, -1), of_after * f, None


def both(layers: int, dtype: torch.dtype) -> tuple[nn.LSTM, LSTM]:
    torch.manual_seed(1)
    theirs = nn.LSTM(INPUTS, HIDDEN, layers, batch_first=True)
    torch.manual_seed(1)
    return theirs.to(dtype), LSTM(INPUTS, HIDDEN, layers).to(dtype)


def score(outputs: Tensor) -> Tensor:
    return (outputs * torch.linspace(-1, 2, outputs.numel(), dtype=outputs.dtype).view(outputs.shape)).sin().sum()


def gradients(parameters: dict[str, Tensor], inputs: Tensor) -> dict[str, Tensor]:
    """What autograd finds through `torch.nn.LSTM`, by parameter, and "inputs"."""
    layers = len(parameters) // 4
    theirs = nn.LSTM(INPUTS, HIDDEN, layers, batch_first=True).to(inputs.dtype)
    theirs.load_state_dict(parameters)
    inputs = inputs.clone().requires_grad_()
    found = torch.autograd.grad(score(theirs(inputs)[0]), [inputs, *theirs.parameters()])
    return dict(zip(["inputs", *parameters], found, strict=True))


def close(ours: Any, theirs: Any, tolerance: float) -> None:
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("layers", [1, 2])
def test_parameters_are_those_of_torch(layers: int) -> None:
    """Names, shapes, order and, for one seed, values."""
    theirs, ours = both(layers, torch.float32)
    close(dict(ours.state_dict()), dict(theirs.state_dict()), 0)
    assert list(ours.state_dict()) == list(theirs.state_dict())


@pytest.mark.parametrize("layers", [1, 2])
def test_a_model_equals_torchs(layers: int, kernel: tuple[torch.dtype, float]) -> None:
    dtype, tolerance = kernel
    theirs, ours = both(layers, dtype)
    inputs = torch.randn(SAMPLES, STEPS, INPUTS, dtype=dtype, requires_grad=True)
    close(ours(inputs), theirs(inputs)[0], tolerance)
    found = torch.autograd.grad(score(ours(inputs)), [inputs, *ours.parameters()])
    close(list(found), list(gradients(ours.state_dict(), inputs.detach()).values()), 10 * tolerance)
    with torch.no_grad():
        close(ours(inputs), theirs(inputs)[0], tolerance)


def test_one_step_is_enough(kernel: tuple[torch.dtype, float]) -> None:
    dtype, tolerance = kernel
    theirs, ours = both(2, dtype)
    inputs = torch.randn(SAMPLES, 1, INPUTS, dtype=dtype)
    close(ours(inputs), theirs(inputs)[0], tolerance)
    found = torch.autograd.grad(score(ours(inputs)), list(ours.parameters()))
    close(list(found), list(gradients(ours.state_dict(), inputs).values())[1:], 10 * tolerance)


def functional(module: nn.Module) -> Callable[[dict[str, Tensor], Tensor], tuple[dict[str, Tensor], Tensor]]:
    return grad(lambda parameters, inputs: score(functional_call(module, parameters, (inputs,))), argnums=(0, 1))


@pytest.mark.parametrize("nesting", ["own", "shared", "runs of shared", "shared of runs"])
def test_rows_equal_models_of_their_own(nesting: str, kernel: tuple[torch.dtype, float]) -> None:
    dtype, tolerance = kernel
    ours = both(2, dtype)[1]
    runs, rows = 2, 3
    several = {name: torch.stack([value, 1.5 * value]) for name, value in ours.state_dict().items()}
    inputs = torch.randn(runs, rows, SAMPLES, STEPS, INPUTS, dtype=dtype)
    one = functional(ours)
    if nesting == "own":
        parameters, given = vmap(one)(several, inputs[:, 0])
        parameters, given, rows = {name: value[:, None] for name, value in parameters.items()}, given[:, None], 1
    elif nesting == "shared":
        parameters, given = vmap(one, in_dims=(None, 0))({name: value[1] for name, value in several.items()}, inputs[1])
        parameters, given = {name: value[None].expand(2, *value.shape) for name, value in parameters.items()}, given.expand(2, *given.shape)
    elif nesting == "runs of shared":
        parameters, given = vmap(vmap(one, in_dims=(None, 0)))(several, inputs)
    else:
        parameters, given = vmap(vmap(one), in_dims=(None, 1), out_dims=1)(several, inputs)
    for run in range(1 if nesting == "shared" else 0, runs):
        for row in range(rows):
            expected = gradients({name: value[run] for name, value in several.items()}, inputs[run, row])
            found = {"inputs": given[run, row], **{name: value[run, row] for name, value in parameters.items()}}
            close(found, expected, 10 * tolerance)


def test_models_are_evaluated_on_the_same_inputs(kernel: tuple[torch.dtype, float]) -> None:
    dtype, tolerance = kernel
    theirs, ours = both(2, dtype)
    several = {name: torch.stack([value, value + 1]) for name, value in ours.state_dict().items()}
    inputs = torch.randn(SAMPLES, STEPS, INPUTS, dtype=dtype)
    with torch.no_grad():
        found = vmap(lambda parameters: functional_call(ours, parameters, (inputs,)))(several)
        for model in range(2):
            expected = functional_call(theirs, {name: value[model] for name, value in several.items()}, (inputs,))[0]
            close(found[model], expected, tolerance)


def test_it_can_be_differentiated_twice() -> None:
    ours = LSTM(2, 3, 2).double()
    inputs = torch.randn(3, 4, 2, dtype=torch.float64, requires_grad=True)
    names = list(ours.state_dict())

    def call(inputs: Tensor, *parameters: Tensor) -> Tensor:
        return functional_call(ours, dict(zip(names, parameters, strict=True)), (inputs,))  # type: ignore[no-any-return]

    assert torch.autograd.gradgradcheck(call, (inputs, *ours.parameters()))

    def slope(weight: Tensor, inputs: Tensor) -> Tensor:
        return functional(ours)({**dict(ours.named_parameters()), "weight_hh_l0": weight}, inputs)[0]["weight_hh_l0"].sin().sum()

    weight, rows = ours.get_parameter("weight_hh_l0").detach(), torch.stack([inputs, 2 * inputs]).detach()
    together = vmap(grad(slope), in_dims=(None, 0))(weight, rows)
    close(together, torch.stack([grad(slope)(weight, row) for row in rows]), 1e-12)


def test_a_layer_without_gradients_keeps_nothing() -> None:
    kept: list[Tensor] = []
    with torch.no_grad(), torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor), lambda tensor: tensor):
        LSTM(2, 3)(torch.randn(2, 2, 2))
    assert not kept


@pytest.mark.parametrize("onednn", [False, True])
def test_operations_are_counted(onednn: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two for each multiply-add: all steps have an input, and all but the first a state."""
    if onednn and not torch.backends.mkldnn.is_available():
        pytest.skip("this PyTorch has no oneDNN")
    if not onednn:
        monkeypatch.setattr(recurrent, "runs_on_onednn", lambda inputs: False)
    layers = sum(80 * 4 * 256 * width + 79 * 4 * 256 * 256 for width in (8, 256))
    for every_position, heads in ((False, 1), (True, 80)):
        module = character_lstm(80, every_position=every_position)
        with FlopCounterMode(display=False) as counter:
            module(torch.zeros(2, 80, dtype=torch.int64)).sum().backward()
        assert counter.get_total_flops() == 3 * 2 * 2 * (layers + heads * 256 * 80)


def test_parameter_counts_of_the_papers() -> None:
    assert len(parameters_to_vector(character_lstm(80).parameters())) == 819_920
    assert len(parameters_to_vector(character_lstm(90, every_position=True).parameters())) == 822_570


def test_logits_of_the_last_or_of_every_position() -> None:
    torch.manual_seed(0)
    last, every = character_lstm(11), character_lstm(11, every_position=True)
    every.load_state_dict(last.state_dict())
    ids = torch.randint(11, (3, 6))
    assert every(ids).shape == (3, 6, 11)
    for dtype in (torch.uint8, torch.int32, torch.int64):
        close(last(ids.to(dtype)), every(ids)[:, -1], 1e-6)


def test_the_gradient_of_an_embedding_is_that_of_torch_and_no_sum_in_bf16() -> None:
    ids = torch.cat([torch.zeros(3000, dtype=torch.int64), torch.arange(1, 6)])
    ours, theirs = Embedding(6, 2), nn.Embedding(6, 2)
    theirs.load_state_dict(ours.state_dict())
    weight = torch.randn(3005, 2)
    expected = torch.autograd.grad((theirs(ids) * weight).sum(), theirs.weight)[0]
    assert torch.equal(torch.autograd.grad((ours(ids) * weight).sum(), ours.weight)[0], expected)
    found = torch.autograd.grad(ours.bfloat16()(ids).sum(), ours.weight)[0]
    assert found[0, 0] == torch.tensor(3000).bfloat16()


def engine(kind: type[Engine], precision: Precision) -> tuple[Engine, Tensor]:
    torch.manual_seed(2)
    module = character_lstm(11, embedding=4, hidden=24)
    layout = Layout.of(module)
    start = layout.flat(parameter.detach().to(precision.master) for parameter in module.parameters())
    return kind(module.to(precision.master), layout, precision, torch.device("cpu")), start


def batch(rows: int, masters: torch.dtype) -> Batch:
    drawn = torch.Generator().manual_seed(3)
    inputs = torch.randint(11, (rows, 6, 20), generator=drawn, dtype=torch.uint8)
    targets = torch.randint(11, (rows, 6), generator=drawn)
    weights = torch.ones(rows, 6, dtype=masters)
    weights[-1, 3:] = 0
    return Batch(
        inputs,
        targets,
        weights,
        torch.zeros(rows, METER_WIDTH, dtype=masters),
        np.array([6, 6, 6, 3]),
        np.zeros((rows, len(CALLS)), np.int64),
    )


def row_gradients(kind: type[Engine], precision: Precision, shared: str) -> tuple[Tensor, Tensor, Tensor]:
    """Of four rows: those of their own models, or of one model that they share. Gradients, meters and logits."""
    made, start = engine(kind, precision)
    models = torch.stack([start * (1 + scale) for scale in {"own": (0, 0.1, 0.2, 0.3), "one": (0,)}[shared]])
    rows = models.repeat_interleave(4 // len(models), 0)
    made.bind([rows])
    if shared != "own":
        made.mark_equal(rows)
    given = batch(len(rows), precision.master)
    gradient = made.gradient(rows, given).clone()
    with torch.no_grad():
        return gradient, given.meter, made.outputs_of(models, given.inputs[: len(models)]).logits


@pytest.mark.parametrize("shared", ["own", "one"])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp64", 1e-12), ("fp32", 1e-5)])
def test_engines_agree(precision: str, tolerance: float, shared: str) -> None:
    loop, stacked = (row_gradients(kind, PRECISIONS[precision], shared) for kind in (LoopEngine, StackedEngine))
    for one, other in zip(loop, stacked, strict=True):
        close(other, one, tolerance)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gradient_reads_nothing_back(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recurrent, "runs_on_onednn", lambda inputs: False)  # as on a GPU
    for kind in (LoopEngine, StackedEngine):
        for shared in ("own", "one"):
            with Capturable():
                row_gradients(kind, PRECISIONS[precision], shared)


@pytest.mark.parametrize("onednn", [False, True])
@pytest.mark.parametrize("shared", ["own", "one"])
def test_bf16_is_close_to_fp32(shared: str, onednn: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient of each row is off by at most 2 % of its length: bf16 rounds to 0.4 %."""
    if not onednn:
        monkeypatch.setattr(recurrent, "runs_on_onednn", lambda inputs: False)
    exact = row_gradients(LoopEngine, PRECISIONS["fp32"], shared)[0]
    for kind in (LoopEngine, StackedEngine):
        rounded = row_gradients(kind, PRECISIONS["bf16"], shared)[0]
        assert rounded.dtype == torch.float32
        assert ((rounded - exact).norm(dim=1) < 0.02 * exact.norm(dim=1)).all()
