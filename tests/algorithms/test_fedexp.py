"""FedExP: its step, by its formula and on paper, and the mean of its last two models."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fl_hydra.algorithms.base import State
from fl_hydra.algorithms.fedexp import FedExP
from fl_hydra.errors import UserError
from tests.support.make import experiment, trainer
from tests.support.quadratics import Quadratics


def test_two_rounds_on_paper() -> None:
    """Two clients, f_k = a_k / 2 (x - b_k)^2, P parameters alike, rate 1/2, J = 1, eps = 0 but for 1e-30; x = 4.

    d = -1/2 (4, 9) of each parameter: mean -13/4, mean of squares (4 + 81 / 4) / 2 = 97/8; 97/8 / (2 * 169/16) = 97/169 < 1: the mean.
    """
    made = Quadratics("algorithm=fedexp", "algorithm.eps=1e-30", "C=1", "J=1", "optimizer.lr=0.5", start=4.0)
    assert made.rounds(1) == [pytest.approx(4 - 13 / 4)]
    x = 0.75  # the optimum, where d = (-3/8, 3/8) cancel: nothing moves, however large the factor is
    assert made.rounds(1) == [pytest.approx(x, abs=1e-9)]


def test_it_goes_further_where_clients_disagree() -> None:
    """x = 0, a = (1, 1), b = (3, -1), rate 1/2: d = (3/2, -1/2), mean 1/2; (9/4 + 1/4) / 2 / (2 * 1/4) = 5/2, so x = 5/4."""
    made = Quadratics("algorithm=fedexp", "algorithm.eps=1e-30", "C=1", "J=1", "optimizer.lr=0.5", a=(1.0, 1.0), b=(3.0, -1.0))
    assert made.rounds(1) == [pytest.approx(1.25)]
    assert float(made.run.state.carried["previous"][0, 0]) == 0
    assert float(made.run.sole_run.experiment.algorithm.models(made.run.state)[0, 0]) == pytest.approx(0.625)


def test_the_mean_of_the_last_two_models_is_evaluated_and_is_what_remains(monkeypatch: pytest.MonkeyPatch) -> None:
    run = trainer("algorithm=fedexp", "K=10", "C=0.3", "J=3", "precision=fp64", "samples=432", "batch_size=16", "sharding=classes", "N_c=2")
    stepped = []
    update = FedExP.update

    def watched(self: FedExP, state: State, *rest: Any) -> None:
        update(self, state, *rest)
        stepped.append(state.model.clone())

    monkeypatch.setattr(FedExP, "update", watched)
    while not run.finished:
        run.run_round()
    assert not torch.allclose(stepped[-1], stepped[-2])
    assert torch.equal(run.state.model, (stepped[-1] + stepped[-2]) / 2)


@pytest.mark.parametrize("eps", [0, -1])
def test_eps_must_be_positive(eps: float) -> None:
    with pytest.raises(UserError, match=r"algorithm\.eps="):
        experiment("algorithm=fedexp", f"algorithm.eps={eps}")
