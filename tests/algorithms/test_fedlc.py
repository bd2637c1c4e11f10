"""FedLC: calibrated logits, by each client's own labels."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from fl_hydra.algorithms.base import algorithms
from fl_hydra.algorithms.fedlc import calibrated
from fl_hydra.errors import UserError
from fl_hydra.seams.rows import Outputs
from tests.support.losses import SMALL, assert_fedavg
from tests.support.make import experiment, trainer, write_shakespeare


def test_a_loss_on_paper() -> None:
    """With 16 samples of label 0 and one of label 1, tau = 1 lowers equal logits by 1/2 and 1."""
    outputs = Outputs(torch.zeros(2, 2, dtype=torch.float64), torch.zeros(2, 0))
    losses = calibrated(outputs, torch.tensor([0, 1]), margins=torch.tensor([0.5, 1.0], dtype=torch.float64))
    assert losses.tolist() == pytest.approx([math.log1p(math.exp(-0.5)), math.log1p(math.exp(0.5))], abs=1e-15)


@pytest.mark.parametrize("engine", ["loop", "stacked"])
def test_without_tau_it_is_fedavg(engine: str) -> None:
    assert_fedavg("algorithm=fedlc", "algorithm.tau=0", engine=engine)


def test_with_equally_many_samples_of_each_label_it_is_fedavg() -> None:
    assert_fedavg("algorithm=fedlc", counts=np.full((6, 10), 20))


def test_a_client_is_calibrated_by_its_own_labels_and_never_predicts_a_missing_one() -> None:
    """The logit of a missing label is lowered so far that its row of the last layer has no gradient."""
    run = trainer(
        "algorithm=fedlc", "K=10", "C=0.1", "J=1", "sharding=classes", "N_c=2", "rounds=1", "batch_size=16", "optimizer.weight_decay=0"
    )
    before, (head,) = run.state.model.clone(), [name for name in run.group.layout.names if name.endswith("bias")][-1:]
    run.run_round()
    moved = (run.group.layout.views(run.state.model - before)[head][0] != 0).nonzero().flatten().tolist()
    facts = run.sole_run.facts
    assert moved in [np.flatnonzero(own).tolist() for own in facts.label_counts]  # type: ignore[union-attr]


def test_what_it_cannot_go_with() -> None:
    with pytest.raises(UserError, match=r"algorithm\.tau=-1.0: must be 0 or more"):
        experiment("algorithm=fedlc", "algorithm.tau=-1", *SMALL)


@pytest.mark.parametrize("name", ["ccvr", *(name for name in algorithms if "label_counts" in algorithms[name].row_facts)])
def test_texts_have_no_labels(name: str, tmp_path: Path) -> None:
    write_shakespeare(tmp_path)
    words = (f"algorithm={name}", "dataset=shakespeare", "dataset.min_samples=1", "dataset.users=6", f"data={tmp_path}")
    with pytest.raises(UserError, match=f"algorithm={name}: counts labels, and samples of dataset=shakespeare have none; choose images"):
        experiment(*words)
