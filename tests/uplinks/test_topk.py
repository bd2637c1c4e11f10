"""Top-k: what arrives, what is kept back, and what it takes on the wire."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch

from fl_hydra.algorithms.base import State
from fl_hydra.algorithms.fedavg import FedAvg
from fl_hydra.errors import UserError
from fl_hydra.seams.clients import Clients
from fl_hydra.uplinks.topk import TopK
from tests.support.make import experiment, trainer

SMALL = ("K=6", "C=0.5", "J=2", "precision=fp64", "rounds=4", "batch_size=16")


def test_the_largest_arrive_and_the_rest_comes_later() -> None:
    """Two of five: errors add up to what was withheld, entry by entry, as long as it takes."""
    uplink, error = TopK(fraction=0.4), torch.zeros(1, 5, dtype=torch.float64)
    sent = []
    for _ in range(3):
        vectors = torch.tensor([[5.0, -4.0, 3.0, 1.0, 0.0]], dtype=torch.float64)
        uplink.encode(vectors, {"error": error}, torch.zeros(1, dtype=torch.int64))
        sent.append(vectors[0].tolist())
    assert sent == [[5, -4, 0, 0, 0], [5, 0, 6, 0, 0], [5, -8, 0, 0, 0]]
    assert error[0].tolist() == [0, 0, 3, 3, 0]
    total = torch.tensor(sent, dtype=torch.float64).sum(0) + error[0]
    assert total.tolist() == [15, -12, 9, 3, 0]


@pytest.mark.parametrize("algorithm", ["fedavg", "scaffold", "fedper"])
def test_an_uplink_that_keeps_everything_changes_nothing(algorithm: str) -> None:
    plain, full = (trainer(f"algorithm={algorithm}", "optimizer=sgd", *SMALL, *more) for more in ((), ("uplink=topk", "uplink.fraction=1")))
    for run in (plain, full):
        while not run.finished:
            run.run_round()
    torch.testing.assert_close(plain.state.model, full.state.model, rtol=1e-12, atol=1e-12)
    assert plain.sole_run.traffic == full.sole_run.traffic


@pytest.mark.parametrize(("algorithm", "state"), [("scaffold", "control"), ("feddyn", "h"), ("feddc", "drift"), ("feddc", "control")])
def test_clients_remember_what_they_did_not_what_they_sent(algorithm: str, state: str) -> None:
    """In the first round, whatever the uplink, clients take the same steps, and know their own ends."""
    kept = []
    for more in ((), ("uplink=topk", "uplink.fraction=0.05")):
        run = trainer(f"algorithm={algorithm}", "optimizer=sgd", *SMALL, *more)
        run.run_round()
        kept.append(run.sole_run.clients.read(np.arange(6), f"state.{state}"))
    assert kept[0].any() and torch.equal(*kept)


@pytest.mark.parametrize("engine", ["loop", "stacked"])
def test_withheld_changes_are_in_the_clients_errors(engine: str) -> None:
    """The sum of what clients have sent and still hold is the sum of what they would have sent; those that drop out keep theirs."""
    run = trainer("algorithm=fedavg", "uplink=topk", "uplink.fraction=0.05", *SMALL, "participation.dropout=0.3", engine=engine)
    size = run.group.layout.size
    while not run.finished:
        run.run_round()
    errors = run.sole_run.clients.read(np.arange(6), "uplink..error")
    assert (errors != 0).any()
    entries = round(0.05 * size)
    traffic = run.sole_run.traffic
    reports = traffic.messages - 4 * 3
    assert traffic.bytes_up == reports * entries * (8 + 4) and traffic.bytes_down == 4 * 3 * size * 8


def test_fewer_bytes_train_too_and_feedback_is_what_makes_it() -> None:
    losses = {}
    for name, more in {"whole": (), "topk": ("uplink=topk",), "lossy": ("uplink=topk", "uplink.error_feedback=false")}.items():
        run = trainer("algorithm=fedavg", "K=4", "C=1", "J=2", "rounds=40", "batch_size=32", *more, engine="stacked")
        while not run.finished:
            run.run_round()
        losses[name] = float(run.evaluate()[0]["val/loss"] or 0)
    assert losses["whole"] < losses["topk"] < losses["lossy"]


def test_mistakes() -> None:
    with pytest.raises(UserError, match=r"uplink.fraction=0.0: the fraction of entries that is sent must be above 0 and at most 1"):
        experiment("algorithm=fedavg", "uplink=topk", "uplink.fraction=0")
    with pytest.raises(UserError, match="uplink=topk: a lone worker of algorithm=centralized sends nothing"):
        experiment("algorithm=centralized", "uplink=topk")
    with pytest.raises(UserError, match=r"uplink=topk: encodes what is sent to be averaged .* algorithm=gossip exchanges something else"):
        experiment("algorithm=gossip", "uplink=topk")


def test_what_stays_with_a_client_is_not_encoded() -> None:
    """Of the shared entries alone the largest are sent, and charged."""
    run = trainer("algorithm=fedper", "algorithm.personal_layers=Linear", "uplink=topk", "uplink.fraction=0.5", *SMALL)
    before, size = run.state.model.clone(), run.group.layout.size - run.group.personal.width
    run.run_round()
    changed = int((run.group.shared.of(run.state.model) != run.group.shared.of(before)).sum())
    assert 0 < changed <= 3 * round(size / 2)
    assert run.sole_run.traffic.bytes_up == 3 * TopK(fraction=0.5).size(size, 8)
    errors = run.sole_run.clients.read(np.arange(6), "uplink..error")
    assert not run.group.personal.of(errors).any()


@dataclass
class Unnamed(FedAvg):
    """Sends a second vector without a name, in the round or after the last."""

    how: str = ""
    concludes: ClassVar[bool] = True

    def finish(self, state: State, clients: Clients) -> None:
        if self.how == "finish":
            clients.mean(clients.receive(state.model))

    def conclude(self, state: State, clients: Clients) -> None:
        self.before = clients.fabric.traffic.bytes_up
        clients.mean(clients.receive(state.model))
        self.after = clients.fabric.traffic.bytes_up


def test_nothing_passes_an_uplink_without_a_name_or_is_charged_less_than_it_takes() -> None:
    settings = ("algorithm=fedavg", "uplink=topk", *SMALL)
    with pytest.raises(TypeError, match="a second vector is sent without a name"):
        trainer(*settings, algorithm=Unnamed(how="finish")).run_round()
    method = Unnamed()
    run = trainer(*settings, algorithm=method)
    while not run.finished:
        run.run_round()
    assert method.after - method.before == 6 * 8 * run.group.layout.size, "after the last round nothing is encoded"
