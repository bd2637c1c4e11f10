"""FedCM: its direction by hand, its limits, and that it is GHBM of one round."""

from __future__ import annotations

import pytest
import torch

from fl_hydra.errors import UserError
from tests.support.make import experiment, trainer
from tests.support.quadratics import Quadratics

SMALL = ("K=6", "C=0.5", "J=3", "precision=fp64", "optimizer=sgd", "batch_size=16", "scheduler=constant")


@pytest.mark.parametrize("engine", ["loop", "stacked"])
def test_with_alpha_1_it_is_fedavg(engine: str) -> None:
    one = trainer("algorithm=fedavg", *SMALL, "samples=700", engine=engine)
    other = trainer("algorithm=fedcm", "algorithm.alpha=1", *SMALL, "samples=700", engine=engine)
    for run in (one, other):
        while not run.finished:
            run.run_round()
    assert torch.equal(one.state.model, other.state.model)


def test_two_rounds_on_paper() -> None:
    """Rate 1/2, J = 1, alpha 1/2, x = 0: gradients (0, -3), halved (0, -3/2): d = -3/4 and x = 3/8. Then gradients (3/8, -15/8); with d:
    (-3/16, -21/16): d = -3/4 and x = 3/4."""
    made = Quadratics("algorithm=fedcm", "algorithm.alpha=0.5", "C=1", "J=1", "optimizer.lr=0.5")
    for x in (3 / 8, 3 / 4):
        assert made.rounds(1) == [x]
        assert float(made.run.state.carried["direction"][0, 0]) == -3 / 4


@pytest.mark.parametrize(
    "more", [(), ("scheduler=cosine", "samples=60"), ("uplink=topk", "uplink.fraction=1")], ids=["", "rates", "uplink"]
)
def test_the_direction_is_of_the_scale_of_a_gradient(more: tuple[str, ...]) -> None:
    """Where all gradients are 1, d <- alpha + (1 - alpha) d, whatever the rates and the number of steps."""
    made = Quadratics("algorithm=fedcm", "algorithm.alpha=0.25", "C=1", "J=3", *more)
    made.gradient_at = lambda parameters, ids: torch.ones_like(parameters)  # type: ignore[method-assign]
    d = 0.0
    for _ in range(4):
        made.run.run_round()
        d = 0.25 + 0.75 * d
        assert float(made.run.state.carried["direction"][0, 0]) == pytest.approx(d, abs=1e-14)


@pytest.mark.parametrize("server", ["server.lr=1", "participation.dropout=0.4"])
def test_it_is_ghbm_of_one_round(server: str) -> None:
    """FedCM(alpha, lr) = GHBM(tau=1, beta=1-alpha, lr alpha) in whole rounds of a constant rate without weight decay."""
    common = (*SMALL, "rounds=4", "optimizer.weight_decay=0")
    one = trainer("algorithm=fedcm", "algorithm.alpha=0.2", "optimizer.lr=0.1", *common, server)
    other = trainer("algorithm=ghbm", "algorithm.tau=1", "algorithm.beta=0.8", "optimizer.lr=0.02", *common, server)
    start = one.state.model.clone()
    for run in (one, other):
        while not run.finished:
            run.run_round()
    torch.testing.assert_close(one.state.model, other.state.model, rtol=0, atol=1e-13)
    assert (one.state.model - start).abs().max() > 1e-3


@pytest.mark.parametrize("alpha", ["-0.1", "1.5", "nan"])
def test_other_weights_are_refused(alpha: str) -> None:
    with pytest.raises(UserError, match=r"algorithm\.alpha=.*between 0 and 1"):
        experiment("algorithm=fedcm", f"algorithm.alpha={alpha}")
