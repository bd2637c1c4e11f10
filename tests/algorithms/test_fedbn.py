"""FedBN: normalisation layers stay with their client, and everything else is averaged."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from fl_hydra.algorithms.fedbn import FedBN
from fl_hydra.data.dataset import DatasetInfo
from fl_hydra.errors import UserError
from fl_hydra.models.base import Model
from fl_hydra.seams.layout import Layout
from fl_hydra.training.planning import plan_round
from tests.support.layers import Layered
from tests.support.losses import SMALL
from tests.support.make import trainer


class Scale(nn.LayerNorm):
    """Whose type's name says nothing."""


@dataclass
class Mixed(Model):
    """Three kinds of normalisation, and a linear layer named after one. affine: of a BatchNorm beside them."""

    name: str = "mixed"
    affine: bool | None = None

    def build(self, info: DatasetInfo) -> nn.Module:
        module = nn.Sequential()
        module.add_module("conv", nn.Conv2d(info.shape[0], 4, 5, stride=3))
        module.add_module("group", nn.GroupNorm(2, 4))
        if self.affine is not None:
            module.add_module("batch", nn.BatchNorm2d(4, affine=self.affine))
        module.add_module("flat", nn.Flatten())
        module.add_module("scale", Scale(64))
        module.add_module("bn", nn.Linear(64, 8))
        module.add_module("last", nn.Linear(8, info.classes))
        return module


@pytest.mark.parametrize("engine", ["loop", "stacked"])
def test_they_stay_by_type_and_everything_else_is_averaged(engine: str) -> None:
    run = trainer("algorithm=fedbn", *SMALL, engine=engine, model=Mixed(affine=True))
    own = run.group.personal
    assert own.names == ("group.weight", "group.bias", "batch.weight", "batch.bias", "scale.weight", "scale.bias")
    before, met = own.of(run.state.model)[0].clone(), set()
    statistics = run.state.buffers["model"].clone()
    while not run.finished:
        met |= set(plan_round(run.sole_run).ids.tolist())
        run.run_round()
    assert torch.equal(own.of(run.state.model)[0], before) and torch.equal(run.state.buffers["model"], statistics)
    kept, statistics_kept = (run.sole_run.clients.read(np.arange(6), name) for name in ("personal", "personal_statistics"))
    for k in range(6):
        assert torch.equal(kept[k], before) == torch.equal(statistics_kept[k], statistics[0]) == (k not in met)
    assert len({tuple(each) for each in kept.tolist()}) == len(met) + (len(met) < 6)
    shared = run.group.layout.size - own.width
    assert run.group.payload == 8 * shared
    assert run.sole_run.traffic.bytes_up == run.sole_run.traffic.bytes_down == 3 * 3 * 8 * shared
    line = run.evaluate()[0]
    assert line["val/acc"] is None and line["personal/val/acc"] is not None


def test_of_batch_norms_alone_it_is_fedper_with_their_names() -> None:
    one = trainer("algorithm=fedbn", *SMALL, model=Layered())
    other = trainer("algorithm=fedper", "algorithm.personal_layers=BatchNorm*", *SMALL, model=Layered())
    while not one.finished:
        one.run_round()
        other.run_round()
    assert torch.equal(one.state.model, other.state.model)
    assert one.evaluate() == other.evaluate()


def test_without_normalisations_it_would_be_fedavg() -> None:
    class Unchecked(FedBN):
        def check_layout(self, layout: Layout) -> None:
            """Below the configuration, nothing is refused."""

    one, other = trainer("algorithm=fedavg", *SMALL), trainer("algorithm=fedavg", *SMALL, algorithm=Unchecked())
    while not one.finished:
        one.run_round()
        other.run_round()
    assert torch.equal(one.state.model, other.state.model)
    assert one.sole_run.traffic == other.sole_run.traffic


def test_models_without_them_are_refused() -> None:
    with pytest.raises(UserError, match=r"algorithm=fedbn: .* the model has none with parameters; choose a model that "):
        trainer("algorithm=fedbn", *SMALL)
    with pytest.raises(UserError, match=r"algorithm=fedbn: a BatchNorm of the model has no parameters.*leave affine=False out"):
        trainer("algorithm=fedbn", *SMALL, model=Mixed(affine=False))
