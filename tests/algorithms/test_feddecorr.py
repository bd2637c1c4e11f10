"""FedDecorr: the correlations of a batch's features."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fl_hydra.algorithms.base import algorithms
from fl_hydra.algorithms.feddecorr import decorrelated
from fl_hydra.data.dataset import DatasetInfo
from fl_hydra.errors import UserError
from fl_hydra.models.small import Small
from fl_hydra.seams.rows import Outputs
from tests.support.losses import SMALL, assert_fedavg
from tests.support.make import experiment, trainer
from tests.support.small import normal

BETA = torch.tensor(0.7, dtype=torch.float64)


def penalty(features: Tensor, weights: Tensor | None = None) -> float:
    """What is added to the loss of equal logits for two labels."""
    outputs = Outputs(torch.zeros(*features.shape[:-1], 2, dtype=torch.float64), features)
    loss = decorrelated(outputs, torch.zeros(features.shape[:-1], dtype=torch.int64), weights, beta=BETA)
    return (float(loss) - math.log(2)) / float(BETA)


def test_it_is_the_squared_correlations_over_d_squared() -> None:
    features = normal(20, 4)
    correlations = np.corrcoef(features.numpy().T)
    assert penalty(features) == pytest.approx(((correlations**2).sum() - 4) / 16, rel=1e-6)
    assert penalty(7 * features + 3) == pytest.approx(penalty(features), rel=1e-6)
    alike = features[:, :1].expand(-1, 3)
    assert penalty(alike) == pytest.approx(6 / 9, rel=1e-6), "all correlations are one"


def test_padding_and_features_that_are_constant_do_not_count() -> None:
    features = normal(8, 3)
    weights = torch.tensor([1.0] * 5 + [0.0] * 3, dtype=torch.float64)
    assert penalty(features, weights) == pytest.approx(penalty(features[:5]), rel=1e-12)
    assert penalty(features.mul(torch.tensor([1.0, 0.0, 0.0]))) == 0
    assert penalty(features[:1]) == pytest.approx(0, abs=1e-15), "one sample has no correlations"
    features = torch.zeros(8, 3, dtype=torch.float64, requires_grad=True)
    outputs = Outputs(torch.zeros(8, 2, dtype=torch.float64), features)
    (gradient,) = torch.autograd.grad(decorrelated(outputs, torch.zeros(8, dtype=torch.int64), None, beta=BETA), features)
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_texts_have_features_at_each_position() -> None:
    features, targets = normal(2, 3, 4), torch.tensor([[0, 1, -100], [1, 1, -100]])
    outputs = Outputs(torch.zeros(2, 3, 2, dtype=torch.float64), features)
    found = decorrelated(outputs, targets, None, beta=BETA)
    assert float(found) == pytest.approx(math.log(2) + 0.7 * penalty(features[:, :2].flatten(0, 1)), rel=1e-12)


@pytest.mark.parametrize("engine", ["loop", "stacked"])
def test_without_beta_it_is_fedavg(engine: str) -> None:
    assert_fedavg("algorithm=feddecorr", "algorithm.beta=0", engine=engine)


def test_features_correlate_less() -> None:
    found = []
    for beta in (0, 20):
        run = trainer("algorithm=feddecorr", f"algorithm.beta={beta}", "K=4", "C=1", "J=8", "rounds=6", "batch_size=32", "optimizer.lr=0.1")
        while not run.finished:
            run.run_round()
        outputs = run.group.engine.outputs_of(run.state.model, run.split.validation.plain(torch.arange(100))[None])
        found.append(penalty(outputs.features[0].double()))
    assert found[1] < 0.7 * found[0]


def test_what_it_cannot_go_with() -> None:
    with pytest.raises(UserError, match=r"algorithm\.beta=-0.1: must be 0 or more"):
        experiment("algorithm=feddecorr", "algorithm.beta=-0.1", *SMALL)


@pytest.mark.parametrize("name", [name for name in algorithms if algorithms[name].reads_features])
def test_a_model_without_a_linear_layer_has_no_features(name: str) -> None:
    @dataclass
    class Convolutional(Small):
        def build(self, info: DatasetInfo) -> nn.Module:
            return nn.Sequential(nn.Conv2d(info.shape[0], info.classes, 16), nn.Flatten())

    with pytest.raises(UserError, match=f"algorithm={name}: reads the features .* has no linear layer; choose a model that ends with one"):
        trainer(f"algorithm={name}", *SMALL, model=Convolutional())
