"""APFL: its ends, alpha of 0 and 1, and how alpha adapts on paper."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from fl_hydra.algorithms.apfl import APFL
from fl_hydra.errors import UserError
from fl_hydra.seams.clients import Facts
from fl_hydra.training.trainer import Trainer
from tests.support.make import experiment, trainer
from tests.support.quadratics import A, B, Quadratics

SMALL = ("K=6", "C=0.5", "J=3", "precision=fp64", "rounds=4", "batch_size=16", "sharding=classes", "N_c=3", "model.filters=2")


def finished(run: Trainer) -> Trainer:
    while not run.finished:
        run.run_round()
    return run


def judged(run: Trainer) -> torch.Tensor:
    return run.groups[0].personal.models(run.sole_run, run.state, run.cohorts.uncharged(run.sole_run, 0, np.arange(6), run.state))


@pytest.mark.parametrize("engine", ["loop", "stacked"])
def test_at_its_ends_it_is_fedavg_and_every_client_alone(engine: str) -> None:
    fixed = ("algorithm=apfl", "algorithm.adaptive=false")
    plain, none, whole, alone = (
        finished(trainer(*more, *SMALL, engine=engine))
        for more in (
            ("algorithm=fedavg",),
            (*fixed, "algorithm.alpha=0"),
            (*fixed, "algorithm.alpha=1"),
            ("algorithm=fedper", "algorithm.personal_layers=all"),
        )
    )
    assert torch.equal(none.state.model, plain.state.model) and torch.equal(whole.state.model, plain.state.model)
    assert torch.equal(judged(none), plain.state.model.expand(6, -1))
    own = alone.sole_run.clients.read(np.arange(6), "personal")
    assert torch.equal(whole.sole_run.clients.read(np.arange(6), "state.own"), own)
    trained = whole.sole_run.clients.read(np.arange(6), "state.trained") > 0
    assert torch.equal(judged(whole), own.where(trained, plain.state.model))


@dataclass
class FromZero(APFL):
    """Own models begin at 0."""

    def client_state(self, models: Tensor, facts: Facts) -> dict[str, Tensor]:
        return {
            name: values if name == "alpha" else torch.zeros_like(values) for name, values in super().client_state(models, facts).items()
        }


@pytest.mark.parametrize(("adaptive", "lr"), [(True, 0.01), (True, 0.1), (False, 0.01)])
def test_some_rounds_on_paper(adaptive: bool, lr: float) -> None:
    """All P parameters of a client are alike: the inner product is P times that of one. At the higher rate alphas end at 1 and 0."""
    made = Quadratics("algorithm=apfl", "C=1", "J=2", f"optimizer.lr={lr}", algorithm=FromZero(alpha=0.3, adaptive=adaptive))
    P, x, own, alpha = made.run.group.layout.size, 0.0, [0.0, 0.0], [0.3, 0.3]
    for _ in range(3):
        ends = []
        for k, (a, b) in enumerate(zip(A, B, strict=True)):
            w = x
            for j in range(2):
                slope, apart, part = a * (alpha[k] * own[k] + (1 - alpha[k]) * w - b), own[k] - w, alpha[k]
                w -= lr * a * (w - b)
                own[k] -= lr * part * slope
                if adaptive and j == 0:
                    alpha[k] = min(1.0, max(0.0, part - lr * P * apart * slope))
            ends.append(w)
        x = sum(ends) / 2
    assert made.rounds(3)[-1] == pytest.approx(x, abs=1e-15)
    clients = made.run.sole_run.clients
    assert clients.read(np.arange(2), "state.own")[:, 0].tolist() == pytest.approx(own, abs=1e-14)
    assert clients.read(np.arange(2), "state.alpha")[:, 0].tolist() == pytest.approx(alpha, abs=1e-12)
    assert (alpha != [0.3, 0.3]) == adaptive and (alpha == [1.0, 0.0]) == (lr == 0.1)


def test_runs_of_a_pack_begin_with_alphas_of_their_own() -> None:
    runs = [experiment("algorithm=apfl", f"algorithm.alpha={alpha}", *SMALL) for alpha in (0.25, 0.75)]
    together = Trainer(*runs, engine="loop")
    assert [run.clients.read(np.arange(1), "state.alpha").item() for run in together.runs] == [0.25, 0.75]


def test_a_weight_beyond_1_is_refused() -> None:
    with pytest.raises(UserError, match=r"algorithm.alpha=1.5: a client's own model has a weight between 0 and 1"):
        experiment("algorithm=apfl", "algorithm.alpha=1.5")
