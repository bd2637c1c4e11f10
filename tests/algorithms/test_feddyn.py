"""FedDyn and FedDC on quadratics: where they rest, and their state under partial participation, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fl_hydra.errors import UserError
from tests.support.make import experiment, trainer
from tests.support.quadratics import Quadratics

A, B, SIZES = (1.0, 3.0, 2.0, 5.0), (0.0, 1.0, -1.0, 2.0), (100, 300, 50, 50)
STATES = {"feddyn": ("h",), "feddc": ("drift", "control")}


@pytest.mark.parametrize("name", STATES)
@pytest.mark.parametrize("J", [2, 8])
def test_it_rests_at_the_optimum_however_many_steps_clients_take(name: str, J: int) -> None:
    """3/4, where FedAvg comes to 0.7286 and 0.6233; there h_k is the gradient of f_k at the optimum, 3/4 and -3/4."""
    made = Quadratics(f"algorithm={name}", "algorithm.alpha=1", "C=1", f"J={J}")
    assert made.rounds(160)[-1] == pytest.approx(0.75, abs=1e-8)
    kept = {state: made.run.sole_run.clients.read(np.arange(2), f"state.{state}")[:, 0].tolist() for state in STATES[name]}
    pull = [
        h if name == "feddyn" else c - d
        for h, c, d in zip(kept[STATES[name][0]], kept[STATES[name][-1]], kept.get("drift", [0, 0]), strict=True)
    ]
    assert pull == pytest.approx([0.75, -0.75], abs=1e-6)


def test_two_rounds_of_feddyn_on_paper() -> None:
    """Rate 1/2, J = 1, alpha = 1, x = 0: w = (0, 3/2), h_k = (0, -3/2), h = -3/4, x = 3/4 + 3/4 = 3/2.

    Then gradients (3/2, 3/2) minus h_k are (3/2, 3): w = (3/4, 0), h_k = (3/4, 0), h = -3/4 + 9/8 = 3/8, x = 3/8 - 3/8 = 0.
    """
    made = Quadratics("algorithm=feddyn", "algorithm.alpha=1", "C=1", "J=1", "optimizer.lr=0.5")
    for x, each, h in ((1.5, [0, -1.5], -0.75), (0.0, [0.75, 0], 0.375)):
        assert made.rounds(1) == [x]
        assert made.run.sole_run.clients.read(np.arange(2), "state.h")[:, 0].tolist() == each
        assert float(made.run.state.carried["h"][0, 0]) == h


def test_two_rounds_of_feddc_on_paper() -> None:
    """Rate 1/2, J = 1, alpha = 1, x = 0: w = (0, 3/2), h_k = (0, 3/2), c_k = (0, -3), c = -3/2, x = 3/4 + 3/4 = 3/2.

    Then g + alpha h_k + c - c_k = (3/2 + 0 - 3/2, 3/2 + 3/2 + 3/2) = (0, 9/2): w = (3/2, -3/4), h_k = (0, -3/4), x = 3/8 - 3/8 = 0,
    c_k = c_k - c + (0, 9/2) = (3/2, 3), c = 9/4.
    """
    made = Quadratics("algorithm=feddc", "algorithm.alpha=1", "C=1", "J=1", "optimizer.lr=0.5")
    for x, drifts, controls, c in ((1.5, [0, 1.5], [0, -3], -1.5), (0.0, [0, -0.75], [1.5, 3], 2.25)):
        assert made.rounds(1) == [x]
        assert made.run.sole_run.clients.read(np.arange(2), "state.drift")[:, 0].tolist() == drifts
        assert made.run.sole_run.clients.read(np.arange(2), "state.control")[:, 0].tolist() == controls
        assert float(made.run.state.carried["control"][0, 0]) == c


@pytest.mark.parametrize("name", STATES)
@pytest.mark.parametrize("more", [(), ("participation.dropout=0.4",), ("samples=40",)], ids=["", "dropout", "cut"])
def test_the_servers_state_is_the_mean_of_all_clients(name: str, more: tuple[str, ...]) -> None:
    """Weighted by their samples, at all times: two of four clients in a round, of which some drop out, and a last round that is cut."""
    made = Quadratics(f"algorithm={name}", "algorithm.alpha=0.5", "C=0.5", "J=3", *more, a=A, b=B, sizes=SIZES)
    shares = torch.tensor(SIZES, dtype=torch.float64) / sum(SIZES)
    for _ in range(8):
        if made.run.finished:
            break
        made.rounds(1)
        for state in STATES[name]:
            each = made.run.sole_run.clients.read(np.arange(4), f"state.{state}")
            torch.testing.assert_close(made.run.state.carried[state], (shares[:, None] * each).sum(0, keepdim=True), rtol=0, atol=1e-12)


@pytest.mark.parametrize("engine", ["loop", "stacked"])
def test_feddcs_first_round_without_a_penalty_moves_twice_as_far_as_fedavgs(engine: str) -> None:
    """All clients take part: the mean of w_k plus the mean of all drifts."""
    command = ("K=4", "C=1", "J=3", "precision=fp64", "optimizer=sgd", "samples=700", "batch_size=16")
    one, other = (
        trainer("algorithm=fedavg", *command, engine=engine),
        trainer("algorithm=feddc", "algorithm.alpha=0", *command, engine=engine),
    )
    start = one.state.model.clone()
    for run in (one, other):
        run.run_round()
    torch.testing.assert_close(other.state.model - start, 2 * (one.state.model - start), rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("feddyn algorithm.alpha=0", "algorithm.alpha=0: FedDyn divides by alpha"),
        ("feddyn algorithm.alpha=-1", "algorithm.alpha=-1.0: must be 0 or more"),
        ("feddyn server=fedadam", r"algorithm=feddyn has an outer step of its own.*leave server and its keys out"),
        ("feddc server.momentum=0.9", "algorithm=feddc has an outer step of its own"),
        ("feddc optimizer=sgdm", "algorithm=feddc: corrects steps of plain SGD"),
        ("fedexp server.lr=0.5", "algorithm=fedexp has an outer step of its own"),
        ("feddyn participation=importance", "participation=importance: weighs updates"),
    ],
)
def test_what_does_not_go_with_it_is_refused(words: str, line: str) -> None:
    with pytest.raises(UserError, match=line):
        experiment(*f"algorithm={words}".split())
