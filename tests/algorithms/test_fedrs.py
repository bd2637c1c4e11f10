"""FedRS: the logits of labels that a client does not have are scaled down."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fl_hydra.algorithms.fedrs import restricted
from fl_hydra.errors import UserError
from fl_hydra.seams.rows import Outputs
from tests.support.losses import SMALL, assert_fedavg
from tests.support.make import experiment, trainer


def test_a_loss_on_paper() -> None:
    """Logits 1 and 2, of which the second, of a missing label, is halved: they are equal then."""
    outputs = Outputs(torch.tensor([[1.0, 2.0]], dtype=torch.float64), torch.zeros(1, 0))
    losses = restricted(outputs, torch.tensor([0]), factors=torch.tensor([1.0, 0.5], dtype=torch.float64))
    assert losses.tolist() == pytest.approx([math.log(2)], abs=1e-15)


@pytest.mark.parametrize("engine", ["loop", "stacked"])
def test_unrestricted_it_is_fedavg(engine: str) -> None:
    assert_fedavg("algorithm=fedrs", "algorithm.alpha=1", engine=engine)


def test_with_all_labels_at_every_client_it_is_fedavg() -> None:
    assert_fedavg("algorithm=fedrs", "algorithm.alpha=0", counts=np.full((6, 10), 1))


def test_with_alpha_0_missing_labels_are_not_trained() -> None:
    run = trainer(
        "algorithm=fedrs", "algorithm.alpha=0", "K=10", "C=0.1", "J=2", "sharding=classes", "N_c=3", "rounds=1", "optimizer.weight_decay=0"
    )
    before, head = run.state.model.clone(), f"{run.group.layout.head}.weight"
    run.run_round()
    change = run.group.layout.views(run.state.model - before)[head][0]
    moved = (change != 0).any(1).nonzero().flatten().tolist()
    assert moved in [np.flatnonzero(own).tolist() for own in run.sole_run.facts.label_counts]  # type: ignore[union-attr]


def test_what_it_cannot_go_with() -> None:
    with pytest.raises(UserError, match=r"algorithm\.alpha=1.5: choose a factor from 0 to 1"):
        experiment("algorithm=fedrs", "algorithm.alpha=1.5", *SMALL)
