"""FedSAM: two gradients of each batch, of which the first is metered."""

from __future__ import annotations

import pytest
import torch

from tests.support.make import trainer
from tests.support.quadratics import Quadratics

SMALL = ("K=10", "C=0.3", "J=3", "precision=fp64", "samples=700", "batch_size=16")


def test_one_step_on_paper() -> None:
    """At x = 0 client 2 has the gradient -3 in each of P parameters, of norm 3 sqrt P: ahead lies -rho / sqrt P."""
    made = Quadratics("algorithm=fedsam", "algorithm.rho=0.3", "C=1", "J=1", "optimizer.lr=0.5", start=0.5)
    P = made.run.group.layout.size
    ahead = 0.3 / P**0.5
    first = 0.5 - 0.5 * (1 * (0.5 + ahead))
    second = 0.5 - 0.5 * (3 * (0.5 - ahead - 1))
    assert made.rounds(1) == [pytest.approx((first + second) / 2, abs=1e-15)]


@pytest.mark.parametrize("engine", ["loop", "stacked"])
def test_without_rho_it_is_fedavg_at_twice_the_price(engine: str) -> None:
    one = trainer("algorithm=fedavg", *SMALL, engine=engine)
    other = trainer("algorithm=fedsam", "algorithm.rho=0", *SMALL, engine=engine)
    for run in (one, other):
        while not run.finished:
            run.run_round()
    # A step's first gradient may be taken of rows that are known to be equal, in another order of operations.
    torch.testing.assert_close(one.state.model, other.state.model, rtol=1e-13, atol=1e-13)
    plain, sharp = one.evaluate()[0], other.evaluate()[0]
    assert sharp["flops"] == 2 * float(plain["flops"] or 0)
    assert sharp["seconds"] == pytest.approx(2 * float(plain["seconds"] or 0))
    assert sharp["train/loss"] == pytest.approx(plain["train/loss"], rel=1e-12), "metered where the rows are"
    assert sharp["train/acc"] == plain["train/acc"]
    assert sharp["samples"] == plain["samples"], "a batch counts once in the budget"
