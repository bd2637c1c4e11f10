"""SCAFFOLD on quadratics: what its paper promises, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fl_hydra.errors import UserError
from tests.support.make import experiment, trainer
from tests.support.quadratics import Quadratics

A, B, SIZES = (1.0, 3.0, 2.0, 5.0), (0.0, 1.0, -1.0, 2.0), (100, 300, 50, 50)


@pytest.mark.parametrize("option", [1, 2])
@pytest.mark.parametrize("J", [1, 2, 8])
def test_it_reaches_the_optimum_however_many_steps_clients_take(J: int, option: int) -> None:
    """sum a_k b_k / sum a_k = 3/4, where FedAvg comes to 0.75, 0.7286 and 0.6233; there c_k = -f_k'(...) differ and c is zero."""
    made = Quadratics("algorithm=scaffold", f"algorithm.control_option={option}", "C=1", f"J={J}")
    if option == 1:  # the pass over all samples is that of the quadratic
        made.run.cohorts.passes.gradient = lambda run, state, ids, models: made.gradient_at(models, ids)  # type: ignore[method-assign]
    assert made.rounds(150)[-1] == pytest.approx(0.75, abs=1e-9)
    controls = made.run.sole_run.clients.read(np.arange(2), "state.control")
    assert controls[:, 0].tolist() == pytest.approx([0.75, -0.75], abs=1e-8)
    assert float(made.run.state.carried["control"][0, 0]) == pytest.approx(0, abs=1e-8)


def test_three_rounds_on_paper() -> None:
    """Rate 1/2, J = 1, x = 0: gradients are (0, -3), mean -3/2, x = 3/4, c_k = (0, -3), c = -3/2.

    Then g = (3/4, -3/4), corrected by c - c_k = (-3/2, 3/2) to (-3/4, 3/4): mean 0, x = 3/4, c_k = (3/4, -3/4), c = 0.
    """
    made = Quadratics("algorithm=scaffold", "C=1", "J=1", "optimizer.lr=0.5")
    for x, controls, control in ((0.75, [0, -3], -1.5), (0.75, [0.75, -0.75], 0), (0.75, [0.75, -0.75], 0)):
        assert made.rounds(1) == [x]
        assert made.run.sole_run.clients.read(np.arange(2), "state.control")[:, 0].tolist() == controls
        assert float(made.run.state.carried["control"][0, 0]) == control


@pytest.mark.parametrize("more", [(), ("participation.dropout=0.4",)], ids=["", "dropout"])
def test_the_servers_control_is_the_mean_of_the_clients(more: tuple[str, ...]) -> None:
    """Weighed by their samples, at all times, with two of four clients in a round, of which some drop out."""
    made = Quadratics("algorithm=scaffold", "C=0.5", "J=3", *more, a=A, b=B, sizes=SIZES)
    shares = torch.tensor(SIZES, dtype=torch.float64) / sum(SIZES)
    for _ in range(12):
        made.rounds(1)
        controls = made.run.sole_run.clients.read(np.arange(4), "state.control")
        torch.testing.assert_close(made.run.state.carried["control"], (shares[:, None] * controls).sum(0, keepdim=True), rtol=0, atol=1e-13)


@pytest.mark.parametrize("engine", ["loop", "stacked"])
def test_its_first_round_is_fedavgs(engine: str) -> None:
    command = ("K=10", "C=0.3", "J=3", "precision=fp64", "optimizer=sgd", "samples=700", "batch_size=16")
    one, other = (trainer(f"algorithm={name}", *command, engine=engine) for name in ("fedavg", "scaffold"))
    for run in (one, other):
        run.run_round()
    torch.testing.assert_close(one.state.model, other.state.model, rtol=0, atol=1e-14)


def test_what_goes_with_the_model_is_part_of_its_message() -> None:
    command = ("K=10", "C=0.3", "J=3", "rounds=4", "batch_size=16", "optimizer=sgd")
    one, other = (trainer(f"algorithm={name}", *command) for name in ("fedavg", "scaffold"))
    for run in (one, other):
        while not run.finished:
            run.run_round()
    plain, doubled = one.sole_run.traffic, other.sole_run.traffic
    assert (doubled.bytes_up, doubled.bytes_down) == (2 * plain.bytes_up, 2 * plain.bytes_down)
    assert (doubled.messages, doubled.averages, doubled.served) == (plain.messages, plain.averages, plain.served)


@pytest.mark.parametrize("optimizer", ["sgdm", "adamw", "sgd optimizer.clip=1"])
def test_other_rules_inside_are_refused(optimizer: str) -> None:
    with pytest.raises(UserError, match=r"algorithm=scaffold: corrects steps of plain SGD.*choose optimizer=sgd"):
        experiment("algorithm=scaffold", *f"optimizer={optimizer}".split())
