"""FedAlt and FedSim: shared and personal parameters, in turn or together; and adapters."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fl_hydra
from fl_hydra.data.dataset import DatasetInfo
from fl_hydra.errors import UserError
from fl_hydra.models.base import Model
from fl_hydra.models.layers.adapters import add_adapters, is_adapter
from tests.support.capture import Recorder
from tests.support.exact import assert_exact
from tests.support.layers import Layered
from tests.support.make import experiment, trainer
from tests.support.personal import SMALL, Coupled, assert_same, finished, own
from tests.support.quadratics import Quadratics

TWICE = ("J=8", "samples=1400")


@pytest.mark.parametrize("optimizer", ["sgd", "sgdm", "adamw"])
def test_they_are_alike_where_the_parts_do_not_meet(optimizer: str) -> None:
    """On f(u) + h(v), where gradients are those of the parameter alone, with slots that each part has for itself."""
    more = (f"optimizer={optimizer}", "optimizer.lr=0.05", "C=1", "J=3")
    runs = [Quadratics(f"algorithm={name}", *more, start=0.5).run for name in ("fedsim", "fedalt")]
    for _ in range(4):
        for run in runs:
            run.run_round()
    assert torch.equal(runs[0].state.model, runs[1].state.model) and torch.equal(own(runs[0]), own(runs[1]))
    assert runs[1].sole_run.samples == 2 * runs[0].sole_run.samples
    assert not torch.equal(own(runs[0])[0], own(runs[0])[1])


def test_a_round_by_hand() -> None:
    """b = (1, 3), J=1, rate 0.1. In turn: v = 0.1 b, then u = 0.1 (b - v) = 0.09 b. Together: both are 0.1 b."""
    for name, expected in (("fedalt", [0.18, 0.1, 0.3]), ("fedsim", [0.2, 0.1, 0.3])):
        u, v = Coupled(f"algorithm={name}", "C=1", "J=1", b=(1, 3)).after(1)
        assert [u, *v] == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("engine", ["loop", "stacked"])
def test_without_personal_layers_they_are_fedavg_and_with_all_every_client_is_alone(engine: str) -> None:
    for personal, other in (("none", "fedavg"), ("all", "local")):
        of_eight = finished(f"algorithm={other}", *SMALL, *TWICE, engine=engine)
        of_four = finished(f"algorithm={other}", *SMALL, engine=engine)
        fedalt = finished("algorithm=fedalt", f"algorithm.personal_layers={personal}", *SMALL, "samples=1400", engine=engine)
        fedsim = finished("algorithm=fedsim", f"algorithm.personal_layers={personal}", *SMALL, engine=engine)
        assert_same(of_eight, fedalt)
        assert_same(of_four, fedsim)
        if personal == "all":
            assert torch.equal(own(of_eight), own(fedalt)) and torch.equal(own(of_four), own(fedsim))
            assert fedalt.sole_run.traffic.bytes_up == fedsim.sole_run.traffic.bytes_up == 0


def test_fedsim_without_adapters_is_fedper() -> None:
    assert_same(finished("algorithm=fedper", *SMALL), finished("algorithm=fedsim", *SMALL))


def test_in_a_cut_round_personal_parameters_are_trained_first() -> None:
    run = finished("algorithm=fedalt", *SMALL, "samples=192")  # 4 of 8 steps
    assert_exact(run.state.model, run.group.initial([0])[0])
    assert len({tuple(each) for each in own(run).tolist()}) == 4


def test_a_growing_number_of_steps_is_read_in_each_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds of 6 and then of 8 steps, of which half are personal: graphs of one are not replayed in the other."""
    monkeypatch.setattr("fl_hydra.training.round_inputs.GRAPH_STEPS", 4)
    words = ("algorithm=fedalt", *SMALL, "samples=1400", "local_steps=linear", "local_steps.start=3")
    eager, replayed = trainer(*words, engine="stacked"), trainer(*words, engine="stacked")
    recorder = Recorder(replayed)
    while not eager.finished:
        eager.run_round()
        replayed.run_round()
    assert sum(recorder.replays) > 0
    assert_same(eager, replayed)


def test_unequal_work_is_refused() -> None:
    with pytest.raises(UserError, match="clients of algorithm=fedalt take J steps of each kind; leave local_steps"):
        experiment("algorithm=fedalt", "local_steps.spread=0.5", *SMALL)


# Adapters


def _convolutions() -> list[nn.Module]:
    return [
        nn.Conv2d(3, 4, 3),
        nn.Conv2d(3, 4, 3, stride=2, padding=1),
        nn.Conv2d(3, 4, (5, 3), stride=(1, 2), padding=(0, 2), bias=False),
        nn.Conv2d(3, 4, 3, dilation=2, padding="same"),
        nn.Conv2d(3, 4, 4, stride=3),
        nn.Conv2d(4, 4, 3, groups=2, padding=1),
        nn.Conv2d(3, 4, 1, stride=2, padding=3),
        nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"),
    ]


@pytest.mark.parametrize("rank", [2, 64])
@pytest.mark.parametrize("position", range(8))
def test_beside_a_convolution_it_is_the_centre_of_the_kernel(position: int, rank: int) -> None:
    torch.manual_seed(position)
    layer = _convolutions()[position].double()
    assert isinstance(layer, nn.Conv2d)
    inputs = torch.randn(2, layer.in_channels, 11, 14, dtype=torch.float64)
    before = layer(inputs)
    assert add_adapters(layer, rank) == 1
    assert torch.equal(layer(inputs), before), "at first nothing is changed"
    named = dict(layer.named_parameters())
    added = [name for name in named if is_adapter(name)]
    assert added == (["adapter"] if rank == 64 else ["adapter_down", "adapter_up"])
    with torch.no_grad():
        for name in added:
            named[name].normal_()
    matrix = named["adapter"] if rank == 64 else torch.einsum("oryx,riyx->oiyx", named["adapter_up"], named["adapter_down"])
    assert int(torch.linalg.matrix_rank(matrix[..., 0, 0])) == min(rank, layer.in_channels, layer.out_channels)
    kernel = torch.zeros(layer.out_channels, layer.in_channels, *layer.kernel_size, dtype=torch.float64)
    kernel[..., layer.kernel_size[0] // 2, layer.kernel_size[1] // 2] = matrix[..., 0, 0]
    expected = before + F.conv2d(inputs, kernel, None, layer.stride, layer.padding, layer.dilation)
    torch.testing.assert_close(layer(inputs), expected, rtol=1e-12, atol=1e-12)


def test_beside_a_linear_layer_it_is_another() -> None:
    layer = nn.Linear(6, 5).double()
    inputs = torch.randn(2, 3, 6, dtype=torch.float64)
    before = layer(inputs)
    assert add_adapters(layer, 2) == 1 and torch.equal(layer(inputs), before)
    down, up = layer.get_parameter("adapter_down"), layer.get_parameter("adapter_up")
    with torch.no_grad():
        up.normal_()
    torch.testing.assert_close(layer(inputs), before + inputs @ down.T @ up.T, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["fedsim", "fedalt"])
def test_a_model_with_adapters_begins_as_the_one_without(name: str) -> None:
    plain, adapted = (
        trainer(f"algorithm={name}", "algorithm.personal_layers=none", *more, *SMALL) for more in ((), ("algorithm.adapters=2",))
    )
    samples = torch.arange(20)
    logits = [
        run.group.engine.outputs_of(run.group.whole(run.state.model, run.state), run.split.train.plain(samples)[None]).logits
        for run in (plain, adapted)
    ]
    assert torch.equal(*logits)
    layout = adapted.group.layout
    assert layout.head == plain.group.layout.head, "the last linear layer is not an adapter"
    assert adapted.group.personal.names == tuple(each for each in layout.names if is_adapter(each))
    assert adapted.group.shared.names == plain.group.layout.names and adapted.group.payload == plain.group.payload
    initial = adapted.state.model.clone()
    while not adapted.finished:
        adapted.run_round()
    assert torch.equal(adapted.group.personal.of(adapted.state.model), adapted.group.personal.of(initial))
    assert len({tuple(each) for each in own(adapted).tolist()}) >= 4
    assert adapted.evaluate()[0]["val/acc"] is None


def test_engines_agree_on_adapters_and_statistics() -> None:
    """Where `personal_layers` names a BatchNorm, and dropout is beside adapters."""
    words = ("algorithm=fedalt", "algorithm.adapters=2", "algorithm.personal_layers=BatchNorm2d", *SMALL)
    runs = [finished(*words, engine=engine, model=Layered(dropout=0.3)) for engine in ("loop", "stacked", "im2col")]
    for run in runs[1:]:
        torch.testing.assert_close(run.state.model, runs[0].state.model, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(own(run), own(runs[0]), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(own(run, "personal_statistics"), own(runs[0], "personal_statistics"), rtol=1e-12, atol=1e-12)
    assert runs[0].group.personal_statistics.names == ("1.running_mean", "1.running_var")


def test_a_trained_model_is_loaded_with_them(tmp_path: Path) -> None:
    words = ("algorithm=fedsim", "algorithm.adapters=2", "K=4", "C=0.5", "J=2", "rounds=2", "batch_size=16", "evaluation.points=1")
    run = fl_hydra.run(*words, outputs=tmp_path, quiet=True)
    loaded = fl_hydra.load(run.folder)
    added = [name for name, _ in loaded.module.named_parameters() if is_adapter(name)]
    assert added == ["0.adapter", *(f"{layer}.adapter_{part}" for layer in (3, 5) for part in ("down", "up"))]
    assert not loaded.module.get_parameter("0.adapter").any(), "the server has those of before"
    own = [loaded.client(k).get_parameter("model.0.adapter") for k in range(4)]
    assert sum(bool(each.any()) for each in own) >= 2 and not torch.equal(own[0], own[1])


class Positions(nn.Module):
    """A layer that is neither linear nor a convolution."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(classes))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.flatten(1)[:, : len(self.scale)] * self.scale


class Shifted(nn.Linear):
    """A linear layer with a parameter that is called as those of adapters are."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.adapter = nn.Parameter(torch.zeros(outputs))

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + self.adapter


@dataclass
class OwnAdapter(Model):
    name: str = "own_adapter"

    def build(self, info: DatasetInfo) -> nn.Module:
        return nn.Sequential(nn.Flatten(), Shifted(int(np.prod(info.shape)), info.classes))


def test_without_adapters_the_name_of_a_parameter_means_nothing() -> None:
    for chosen, names in (("none", set[str]()), ("*.bias", {"1.bias"})):
        run = trainer("algorithm=fedsim", f"algorithm.personal_layers={chosen}", *SMALL, model=OwnAdapter())
        assert set(run.group.personal.names) == names


@dataclass
class Bare(Model):
    name: str = "bare"

    def build(self, info: DatasetInfo) -> nn.Module:
        return Positions(info.classes)


def test_models_without_layers_for_them_are_refused() -> None:
    with pytest.raises(UserError, match=r"algorithm.adapters=2: the model has neither a Conv2d nor a Linear .*; leave it out"):
        trainer("algorithm=fedsim", "algorithm.adapters=2", "algorithm.personal_layers=none", *SMALL, model=Bare())
    with pytest.raises(UserError, match=r"algorithm.adapters=0: a rank of 1 or more is needed, or null"):
        experiment("algorithm=fedalt", "algorithm.adapters=0", *SMALL)
