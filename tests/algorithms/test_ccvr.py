"""CCVR: Gaussians of all clients' features, and a last layer that is retrained with draws from them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fl_hydra.data.dataset import DatasetInfo
from fl_hydra.errors import UserError
from fl_hydra.models.small import Small
from fl_hydra.seams.calibration import ClassGaussians, retrain
from fl_hydra.training.trainer import Trainer
from tests.support.exact import assert_exact
from tests.support.losses import SMALL
from tests.support.make import experiment, trainer
from tests.support.small import finish, normal

SKEWED = ("K=10", "C=0.3", "J=8", "rounds=25", "batch_size=32", "optimizer.lr=0.05", "sharding=dirichlet", "sharding.alpha=0.05")


def test_what_clients_send_makes_the_gaussians_of_all_features() -> None:
    features, targets = normal(60, 4).abs(), torch.arange(60) % 3
    targets[0] = 3
    gathered = ClassGaussians(5, 4)
    numbers = [gathered.add(features[part], targets[part]) for part in (slice(0, 10), slice(10, 12), slice(12, 60))]
    assert numbers == [4 * 15, 2 * 15, 3 * 15], "a count, a mean and half of a covariance for each label of a client"
    assert gathered.counts == [19, 20, 20, 1, 0]
    for label in range(3):
        own = features[targets == label].numpy()
        assert_exact(gathered.means[label], torch.from_numpy(own.mean(0)))
        assert_exact(gathered.covariance(label), torch.from_numpy(np.cov(own.T)))
    drawn, labels = gathered.draw(20_000, lambda label: np.random.default_rng(label))
    assert labels.tolist() == [label for label in range(4) for _ in range(20_000)], "none of a label without samples"
    own = features[targets == 2].numpy()
    assert drawn[labels == 2].mean(0).numpy() == pytest.approx(own.mean(0), abs=0.02)
    assert np.cov(drawn[labels == 2].numpy().T) == pytest.approx(np.cov(own.T), abs=0.02)
    assert_exact(drawn[labels == 3], features[:1].expand(20_000, -1))


@pytest.mark.parametrize("biased", [True, False])
def test_retraining_is_sgd_on_the_cross_entropy(biased: bool) -> None:
    features, labels, layer = normal(100, 4), torch.arange(100) % 3, nn.Linear(4, 3, bias=biased).double()
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone() if biased else None
    orders = [np.random.default_rng(epoch).permutation(100) for epoch in range(2)]
    retrain(weight, bias, features, labels, orders, 0.3)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.3)
    for order in orders:
        for which in (order[:64], order[64:]):
            optimizer.zero_grad()
            F.cross_entropy(layer(features[which]), labels[which]).backward()
            optimizer.step()
    assert_exact(weight, layer.weight.detach())
    if bias is not None:
        assert_exact(bias, layer.bias.detach())


@pytest.mark.parametrize("word", ["algorithm.calibration_epochs=0", "algorithm.calibration_lr=0"])
def test_uncalibrated_it_is_fedavg_with_one_message_more(word: str) -> None:
    one, other = finish(trainer("algorithm=fedavg", *SMALL)), finish(trainer("algorithm=ccvr", word, *SMALL))
    assert torch.equal(one.state.model, other.state.model)
    plain, more, layout = one.evaluate()[0], other.evaluate()[0], one.group.layout
    counts, width = one.sole_run.facts.label_counts, layout.views(one.state.model)[f"{layout.head}.weight"].shape[2]
    assert counts is not None
    assert int(more["bytes_down"] or 0) - int(plain["bytes_down"] or 0) == 6 * 8 * layout.size
    numbers = int((counts > 0).sum()) * (1 + width + width * (width + 1) // 2)
    assert int(more["bytes_up"] or 0) - int(plain["bytes_up"] or 0) == 8 * numbers
    assert float(more["flops"] or 0) - float(plain["flops"] or 0) == counts.sum() * one.group.forward_flops
    assert more["samples"] == plain["samples"] and float(more["seconds"] or 0) > float(plain["seconds"] or 0)


def test_the_last_layer_alone_is_calibrated_and_is_better() -> None:
    one, other = (
        finish(trainer("algorithm=fedavg", *SKEWED, engine="stacked")),
        finish(trainer("algorithm=ccvr", *SKEWED, engine="stacked")),
    )
    head = f"{one.group.layout.head}."
    views = [run.group.layout.views(run.state.model) for run in (one, other)]
    for name in one.group.layout.names:
        assert torch.equal(views[0][name], views[1][name]) != name.startswith(head)
    before, after = (float(run.evaluate()[0]["val/acc"] or 0) for run in (one, other))
    assert after > before + 0.1


@pytest.mark.parametrize("rounds", [2, 3])
def test_a_run_that_is_killed_before_or_after_its_end_ends_alike(rounds: int, tmp_path: Path) -> None:
    e = experiment("algorithm=ccvr", *SMALL)
    whole, killed, resumed = (Trainer(e, engine="stacked", client_folders=[tmp_path / each]) for each in ("0", "1", "1"))
    finish(whole)
    for _ in range(rounds):
        killed.run_round()
    resumed.restore(killed.checkpoint())
    assert resumed.finished == (rounds == 3)
    finish(resumed)
    assert torch.equal(resumed.state.model, whole.state.model)
    assert resumed.evaluate() == whole.evaluate()


def test_what_it_cannot_go_with() -> None:
    @dataclass
    class Wide(Small):
        """Whose last linear layer does not give the logits."""

        def build(self, info: DatasetInfo) -> nn.Module:
            return nn.Sequential(nn.Flatten(), nn.Linear(256, 2 * info.classes), nn.AvgPool1d(2))

    with pytest.raises(UserError, match="algorithm=ccvr: retrains the last linear layer, which must be trained and give the logits"):
        trainer("algorithm=ccvr", *SMALL, model=Wide())
    with pytest.raises(UserError, match=r"algorithm\.M_c=0: at least 1 virtual feature"):
        experiment("algorithm=ccvr", "algorithm.M_c=0", *SMALL)
