"""Ditto: FedAvg's global model, and own models between it and every client alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fl_hydra.training.planning import plan_round
from fl_hydra.training.trainer import Trainer
from tests.support.make import experiment, trainer
from tests.support.quadratics import A, B, Quadratics

SMALL = ("K=6", "C=0.5", "J=3", "precision=fp64", "rounds=4", "batch_size=16", "sharding=classes", "N_c=3", "model.filters=2")


def finished(run: Trainer) -> Trainer:
    while not run.finished:
        run.run_round()
    return run


@pytest.mark.parametrize(("lam", "J"), [(0.5, 1), (4.0, 4)])
def test_its_fixed_point_on_quadratics(lam: float, J: int) -> None:
    """(a_k b_k + lam x) / (a_k + lam), where x is FedAvg's."""
    made, plain = (
        Quadratics(f"algorithm={name}", "C=1", f"J={J}", "optimizer.lr=0.25", *more)
        for name, more in (("ditto", (f"algorithm.lam={lam}",)), ("fedavg", ()))
    )
    rounds = 120 // J
    x = made.rounds(rounds)[-1]
    assert x == plain.rounds(rounds)[-1]
    own = made.run.sole_run.clients.read(np.arange(2), "state.own")
    for found, a, b in zip(own, A, B, strict=True):
        torch.testing.assert_close(found, torch.full_like(found, (a * b + lam * x) / (a + lam)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("engine", ["loop", "stacked"])
@pytest.mark.parametrize("optimizer", ["sgdm", "adamw"])
def test_the_global_model_is_fedavgs_and_without_a_tether_clients_are_alone(engine: str, optimizer: str) -> None:
    words = (*SMALL, f"optimizer={optimizer}", "optimizer.lr=0.01", "samples=400", "rounds=null", "local_steps.spread=0.5")
    plain, made, alone = (
        finished(trainer(*words, *more, engine=engine))
        for more in (("algorithm=fedavg",), ("algorithm=ditto", "algorithm.lam=0"), ("algorithm=fedper", "algorithm.personal_layers=all"))
    )
    assert torch.equal(made.state.model, plain.state.model)
    read = made.sole_run.clients.read(np.arange(6), "state.own")
    assert torch.equal(read, alone.sole_run.clients.read(np.arange(6), "personal"))


def test_a_batch_counts_once_and_costs_two_gradients() -> None:
    plain, made = (finished(trainer(f"algorithm={name}", *SMALL)) for name in ("fedavg", "ditto"))
    one, other = plain.evaluate()[0], made.evaluate()[0]
    for same in ("samples", "train/loss", "train/acc", "val/acc", "test/loss", "bytes_up", "bytes_down", "messages"):
        assert other[same] == one[same], same
    assert other["flops"] == 2 * float(one["flops"] or 0)
    assert other["seconds"] == pytest.approx(2 * float(one["seconds"] or 0))
    assert float(other["personal/val/acc"] or 0) > float(one["val/acc"] or 0), "three classes each"


@pytest.mark.parametrize("algorithm", ["ditto", "pfedme", "apfl"])
def test_clients_that_have_not_trained_are_judged_with_the_servers_model(algorithm: str) -> None:
    run = trainer(f"algorithm={algorithm}", *SMALL)
    cohort = set(plan_round(run.sole_run).ids.tolist())
    run.run_round()
    models = run.groups[0].personal.models(run.sole_run, run.state, run.cohorts.uncharged(run.sole_run, 0, np.arange(6), run.state))
    for client, model in enumerate(models):
        assert torch.equal(model, run.state.model[0]) == (client not in cohort)


@pytest.mark.parametrize("algorithm", ["ditto", "pfedme", "apfl"])
def test_own_models_survive_an_interruption(algorithm: str, tmp_path: Path) -> None:
    """With clients that drop out, whose own models are as before."""
    e = experiment(f"algorithm={algorithm}", *SMALL, "participation.dropout=0.3", "local_steps.spread=0.5", "samples=700", "rounds=null")
    whole, first, second = (Trainer(e, engine="stacked", client_folders=[tmp_path / str(i)]) for i in (0, 1, 1))
    finished(whole)
    for _ in range(2):
        first.run_round()
    second.restore(first.checkpoint())
    finished(second)
    assert torch.equal(whole.state.model, second.state.model)
    assert whole.evaluate() == second.evaluate()
