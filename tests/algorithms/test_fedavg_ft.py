"""FedAvg with fine-tuning: FedAvg's training, and clients that are judged after steps of their own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.support.make import trainer

SMALL = ("K=6", "C=0.5", "J=3", "precision=fp64", "rounds=4", "batch_size=16", "sharding=classes", "N_c=3", "model.filters=2")


@pytest.mark.parametrize("engine", ["loop", "stacked"])
def test_training_is_fedavgs_however_often_it_is_evaluated(engine: str) -> None:
    plain, run = (trainer(f"algorithm={name}", *SMALL, engine=engine) for name in ("fedavg", "fedavg_ft"))
    while not run.finished:
        plain.run_round()
        run.run_round()
        one, other = plain.evaluate()[0], run.evaluate()[0]
        assert {name: other[name] for name in one} == one, "the figures, the cost and the time of FedAvg"
    assert torch.equal(plain.state.model, run.state.model)


def test_without_steps_it_is_fedavg_judged_by_clients() -> None:
    plain, none, some = (
        trainer("algorithm=fedavg", "evaluation.personal=dealt", *SMALL),
        trainer("algorithm=fedavg_ft", "algorithm.ft_steps=0", *SMALL),
        trainer("algorithm=fedavg_ft", "algorithm.ft_steps=20", *SMALL),
    )
    for run in (plain, none, some):
        while not run.finished:
            run.run_round()
    expected, line, tuned = (run.evaluate()[0] for run in (plain, none, some))
    assert line == expected
    assert float(tuned["personal/val/acc"] or 0) > float(line["personal/val/acc"] or 0), "three classes each"


def test_the_rate_of_tuning_is_the_runs_or_its_own() -> None:
    for words, rate in (((), 0.1), (("algorithm.ft_lr=0.03",), 0.03)):
        run = trainer("algorithm=fedavg_ft", "optimizer.lr=0.1", *words, *SMALL)
        clients = run.cohorts.uncharged(run.sole_run, 0, np.arange(2), run.state)
        assert torch.equal(
            run.groups[0].personal.models(run.sole_run, run.state, clients), clients.tune(run.state.model.repeat(2, 1), 5, rate)
        )
