"""FedASAM: where its second gradient is taken, and its limits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fl_hydra.algorithms.fedasam import FedASAM, unscaled
from fl_hydra.errors import UserError
from fl_hydra.optim.base import Layers
from fl_hydra.seams.rows import Rows
from tests.support.make import experiment, trainer

SMALL = ("K=10", "C=0.3", "J=3", "precision=fp64", "optimizer=sgd", "samples=700", "batch_size=16")


@pytest.mark.parametrize("engine", ["loop", "stacked"])
def test_without_rho_it_is_fedavg_at_twice_the_price(engine: str) -> None:
    one = trainer("algorithm=fedavg", *SMALL, engine=engine)
    other = trainer("algorithm=fedasam", "algorithm.rho=0", *SMALL, engine=engine)
    for run in (one, other):
        while not run.finished:
            run.run_round()
    # A step's first gradient may be taken of rows that are known to be equal, in another order of operations.
    torch.testing.assert_close(one.state.model, other.state.model, rtol=1e-13, atol=1e-13)
    assert other.sole_run.computed == 2 * one.sole_run.computed


def test_the_second_gradient_is_taken_in_the_scale_of_each_weight() -> None:
    """Against rho T^2 g / |T g| written out for each tensor, weights scaled by |w| + eta and biases not."""
    run = trainer("algorithm=fedasam", "algorithm.rho=0.5", "algorithm.eta=0.1", *SMALL)
    method = run.sole_run.experiment.algorithm
    assert isinstance(method, FedASAM)
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    own = FedASAM.ahead

    def ahead(rows: Rows, ascent: Tensor) -> Tensor:
        before = (rows.parameters.clone(), ascent.clone())
        seen.append((*before, own(method, rows, ascent).clone()))
        return seen[-1][2]

    method.ahead = ahead  # type: ignore[method-assign]
    run.run_round()
    layout = run.group.layout
    for parameters, gradients, found in seen:
        for row in range(len(parameters)):
            w, g, at = (layout.views(vectors[row]) for vectors in (parameters, gradients, found))
            T = {name: w[name].abs() + 0.1 if name.endswith("weight") else torch.ones_like(w[name]) for name in w}
            norm = sum(float((T[name] * g[name]).square().sum()) for name in w) ** 0.5
            for name in w:
                torch.testing.assert_close(at[name], w[name] + 0.5 / norm * T[name].square() * g[name], rtol=0, atol=1e-14)


def test_neighbours_without_a_scale_lie_together() -> None:
    assert unscaled(Layers((3, 2, 4, 1, 1, 5), (True, False, True, False, False, True))) == (slice(3, 5), slice(9, 11))


def test_negative_numbers_are_refused() -> None:
    for name in ("rho", "eta"):
        with pytest.raises(UserError, match=rf"algorithm\.{name}=-1.*must be"):
            experiment("algorithm=fedasam", f"algorithm.{name}=-1")
