"""FedSpeed: its fixed point, its steps by hand, and its limits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fl_hydra.errors import UserError
from tests.support.make import experiment, trainer
from tests.support.quadratics import Quadratics

SMALL = ("K=6", "C=0.5", "J=3", "precision=fp64", "optimizer=sgd", "samples=700", "batch_size=16")


@pytest.mark.parametrize("J", [2, 8])
def test_it_reaches_the_optimum_however_many_steps_clients_take(J: int) -> None:
    """sum a_k b_k / sum a_k = 3/4, where each h_k is the gradient of its client, 3/4 and -3/4."""
    made = Quadratics("algorithm=fedspeed", "algorithm.rho=0", "algorithm.lam=1", "C=1", f"J={J}")
    assert made.rounds(300)[-1] == pytest.approx(0.75, abs=1e-8)
    kept = made.run.sole_run.clients.read(np.arange(2), "state.correction")
    assert kept[:, 0].tolist() == pytest.approx([0.75, -0.75], abs=1e-7)


def test_three_rounds_on_paper() -> None:
    """J = 2 steps at rate 0.1, alpha 1/2, lam 2, rho 0.3, with both gradients written out."""
    made = Quadratics("algorithm=fedspeed", "algorithm.rho=0.3", "algorithm.alpha=0.5", "algorithm.lam=2", "C=1", "J=2", start=0.5)
    far = 0.3 / made.run.group.layout.size**0.5  # the gradient has P equal components
    x, h = 0.5, [0.0, 0.0]
    for _ in range(3):
        sent = []
        for k, (a, b) in enumerate(((1.0, 0.0), (3.0, 1.0))):
            w = x
            for _ in range(2):
                g = a * (w - b)
                ahead = a * (w + far * np.sign(g) - b)
                w = w - 0.1 * ((g + ahead) / 2 - h[k] + (w - x) / 2)
            h[k] -= (w - x) / 2
            sent.append(w - 2 * h[k])
        x = sum(sent) / 2
        assert made.rounds(1) == [pytest.approx(x, abs=1e-13)]


def test_what_is_sent_in_the_first_round_goes_twice_as_far() -> None:
    """h = -(w - x) / lam, so that w - lam h = x + 2 (w - x); loosely held, the first ends are FedAvg's."""
    one, other = (
        trainer(f"algorithm={name}", *more, *SMALL)
        for name, more in (("fedavg", ()), ("fedspeed", ("algorithm.rho=0", "algorithm.lam=1e12")))
    )
    start = one.state.model.clone()
    for run in (one, other):
        run.run_round()
    torch.testing.assert_close(other.state.model - start, 2 * (one.state.model - start), rtol=0, atol=1e-9)


def test_who_drops_out_keeps_the_correction() -> None:
    run = trainer("algorithm=fedspeed", *SMALL, "participation.dropout=0.5")
    while not run.finished:
        before = run.sole_run.clients.read(np.arange(6), "state.correction")
        participation, number = run.sole_run.experiment.participation, run.sole_run.round
        run.run_round()
        after = run.sole_run.clients.read(np.arange(6), "state.correction")
        changed = np.flatnonzero((before != after).any(1).numpy())
        ids = np.arange(6)[participation.reports(np.arange(6), run.sole_run.experiment.seed, number)]
        assert set(changed.tolist()) <= set(ids.tolist())


@pytest.mark.parametrize("wrong", ["rho=-1", "alpha=1.5", "lam=0", "lam=-1"])
def test_numbers_that_mean_nothing_are_refused(wrong: str) -> None:
    with pytest.raises(UserError, match=rf"algorithm\.{wrong.partition('=')[0]}=.*must be"):
        experiment("algorithm=fedspeed", f"algorithm.{wrong}")
