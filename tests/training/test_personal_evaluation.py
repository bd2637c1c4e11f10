"""Models of clients on their own shares of the validation and test samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from fl_hydra.algorithms.fedper import FedPer
from fl_hydra.seams.clients import Clients
from fl_hydra.seams.rows import Outputs
from fl_hydra.training.personal_evaluation import PersonalScores, deal_shares
from tests.support.make import trainer

SMALL = ("algorithm=fedper", "K=6", "C=0.5", "J=3", "precision=fp64", "rounds=4", "batch_size=16", "sharding=classes", "N_c=3")


def test_shares_are_disjoint_and_in_proportion() -> None:
    counts = np.array([[10, 0, 3], [20, 0, 0], [0, 0, 3]])
    labels = np.repeat([0, 1, 2], [10, 4, 3])
    shares = deal_shares(counts, labels, seed=0)
    dealt = np.bincount(np.concatenate(shares), minlength=len(labels))
    assert dealt.max() == 1 and not dealt[labels == 1].any(), "nobody has trained on class 1"
    assert [[int((labels[share] == label).sum()) for label in range(3)] for share in shares] == [[3, 0, 2], [7, 0, 0], [0, 0, 1]]


def test_figures() -> None:
    scores = PersonalScores(np.array([1.0, 2.0, 3.0]), np.array([0.9, 0.5, 0.1]), np.array([2, 1, 1]))
    assert scores.figures("p") == pytest.approx(
        {
            "p/loss": 2,
            "p/acc": 0.5,
            "p/acc_weighted": 0.6,
            "p/acc_worst_tenth": 0.1,
            "p/acc_deviation": float(np.std([0.9, 0.5, 0.1])),
            "p/clients": 3,
        }
    )


def test_every_sample_is_looked_at_once_by_its_client() -> None:
    run = trainer(*SMALL)
    while not run.finished:
        run.run_round()
    figures = run.evaluate()[0]
    split, layout, right, clients = run.split, run.group.layout, 0.0, 0
    shares = deal_shares(run.sole_run.facts.label_counts, split.test.targets.numpy(), 0)  # type: ignore[arg-type]
    assert sum(map(len, shares)) == len(split.test)
    heads = run.sole_run.clients.read(np.arange(6), "personal")
    for k, share in enumerate(shares):
        model = run.state.model.clone()
        run.group.personal.write(model, heads[k][None])
        module = run.group.architecture.build().double()
        logits = torch.func.functional_call(module, layout.views(model[0]), (split.test.plain(torch.from_numpy(share)),))
        right += float((logits.argmax(-1) == split.test.targets[share]).double().mean())
        clients += 1
    assert figures["personal/test/acc"] == pytest.approx(right / clients, abs=1e-12)
    assert figures["personal/test/clients"] == 6 and figures["test/acc"] is None and figures["val/loss"] is None


@dataclass
class Majority(FedPer):
    """Clients that predict what they have most of, whatever they see; and adapt by a step along their whole gradient."""

    predicts: ClassVar[bool] = True

    def adapt(self, models: Tensor, clients: Clients) -> Tensor:
        return models - 0.1 * clients.gradient(models)

    def predict(self, outputs: Outputs, clients: Clients, models: Tensor) -> Tensor:
        (client,) = clients.ids
        own, targets = clients.outputs(int(client), models)
        assert len(own.features) == len(targets) == clients.facts.sizes[client]
        return torch.bincount(targets, minlength=10).to(outputs.logits.dtype).expand_as(outputs.logits)


def test_adapted_models_and_other_predictions_are_judged_and_not_charged() -> None:
    run = trainer(*SMALL, algorithm=Majority())
    run.run_round()
    before = (run.sole_run.computed, run.sole_run.forwarded, run.sole_run.seconds)
    figures = run.evaluate()[0]
    counts, labels = run.sole_run.facts.label_counts, run.split.validation.targets.numpy()
    assert counts is not None
    shares = deal_shares(counts, labels, 0)
    expected = np.mean([(labels[share] == counts[client].argmax()).mean() for client, share in enumerate(shares)])
    assert figures["personal/val/acc"] == pytest.approx(expected)
    assert (run.sole_run.computed, run.sole_run.forwarded, run.sole_run.seconds) == before
