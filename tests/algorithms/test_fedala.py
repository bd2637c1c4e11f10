"""FedALA: a round in plain PyTorch, and the numbers with which it is FedAvg."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fl_hydra.algorithms.fedala import FedALA
from fl_hydra.errors import UserError
from fl_hydra.training.planning import RoundPlan, plan_round
from fl_hydra.training.trainer import Trainer
from tests.support.batches import NotesBatches
from tests.support.exact import assert_exact
from tests.support.make import experiment, trainer
from tests.support.small import finish

SMALL = (
    "K=6",
    "C=0.5",
    "J=3",
    "rounds=5",
    "batch_size=16",
    "sharding=classes",
    "N_c=3",
    "precision=fp64",
    "model.filters=2",
    "model.hidden=8",
)


class Recording(NotesBatches, FedALA):
    """Notes batches."""


def slope(run: Trainer, model: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
    """The gradient of the mean cross-entropy at a model [P]."""
    given = model.clone().requires_grad_()
    logits = torch.func.functional_call(run.group.architecture.module, run.group.layout.views(given), (inputs,))
    return torch.autograd.grad(F.cross_entropy(logits, targets), given)[0]


@dataclass
class Reference:
    """One client of the paper: its model's higher part, its weights, and how many rounds it was in."""

    local: Tensor
    weights: Tensor
    rounds: int = 0

    def start(self, run: Trainer, received: Tensor, client: int, passes: int) -> Tensor:
        part, higher = run.sole_run, run.group.columns["adaptive"]
        start, new = received.clone(), higher.of(received)
        if self.rounds:
            shard = part.shards[client]
            drawn = part.facts.draws("fedala", part.round, client).permutation(len(shard))[: int(0.5 * len(shard))]
            for _ in range(passes if self.rounds == 1 else 1):
                for first in range(0, len(drawn), 16):
                    which = torch.from_numpy(shard[drawn[first : first + 16]])
                    higher.write(start, self.local + (new - self.local) * self.weights)
                    gradient = higher.of(slope(run, start, run.split.train.plain(which), run.split.train.targets[which]))
                    self.weights = (self.weights - 2.0 * gradient * (new - self.local)).clamp(0, 1)
        higher.write(start, self.local + (new - self.local) * self.weights)
        return start if self.rounds else received.clone()


def reported(plan: RoundPlan) -> list[bool]:
    assert plan.reports is not None
    return [bool(each) for each in plan.reports]


@pytest.mark.parametrize("engine", ["loop", "stacked"])
@pytest.mark.parametrize("more", [(), ("participation.dropout=0.4",)], ids=["", "dropout"])
def test_rounds_are_those_of_the_paper(more: tuple[str, ...], engine: str) -> None:
    """With half of a client's samples, and losses that deviate by less than 10 from the first: 11 passes in its second round."""
    algorithm = Recording(eta=2.0, s=50.0, threshold=10.0)
    words = ("algorithm=fedala", *SMALL, "optimizer.lr=0.3", "optimizer.weight_decay=0")
    run = trainer(*words, *more, engine=engine, algorithm=algorithm)
    higher = run.group.columns["adaptive"]
    first = higher.of(run.state.model[0]).clone()
    clients = {client: Reference(first, torch.ones_like(first)) for client in range(6)}
    while not run.finished:
        plan, received = plan_round(run.sole_run), run.state.model[0].clone()
        starts = {}
        for client, reports in zip(plan.ids.tolist(), reported(plan), strict=True):
            kept = Reference(clients[client].local, clients[client].weights, clients[client].rounds)
            starts[client] = kept.start(run, received, client, passes=11)
            if reports:
                clients[client] = kept
        algorithm.batches.clear()
        run.run_round()
        mean, rows_each = torch.zeros_like(received), len(algorithm.batches) // 3
        for row, (client, reports) in enumerate(zip(plan.ids.tolist(), reported(plan), strict=True)):
            model = starts[client]
            for j in range(3):
                batch, place = (algorithm.batches[row * 3 + j], 0) if rows_each == 3 else (algorithm.batches[j], row)
                model = model - 0.3 * slope(run, model, batch.inputs[place], batch.targets[place])
            mean += plan.weights[row] * model
            if reports:
                clients[client].local, clients[client].rounds = higher.of(model), clients[client].rounds + 1
        assert_exact(run.state.model[0], mean if any(reported(plan)) else received)
    found = {name: run.sole_run.clients.read(np.arange(6), f"state.{name}") for name in ("local", "weights", "rounds")}
    for client, reference in clients.items():
        assert_exact(found["local"][client], reference.local)
        assert_exact(found["weights"][client], reference.weights)
        assert found["rounds"][client] == min(2, reference.rounds)
    assert float((found["weights"] < 0.99).double().mean()) > 0.01, "weights were learned"


@pytest.mark.parametrize("number", ["eta=0", "s=0", "adaptive_layers=none"])
def test_with_weights_of_one_it_is_fedavg_to_the_last_bit(number: str) -> None:
    one, other = (finish(trainer(*words, *SMALL)) for words in (("algorithm=fedavg",), ("algorithm=fedala", f"algorithm.{number}")))
    assert torch.equal(one.state.model, other.state.model)
    plain, figures = one.evaluate()[0], other.evaluate()[0]
    assert {name: figures[name] for name in plain if name not in ("flops", "seconds")} == {
        name: value for name, value in plain.items() if name not in ("flops", "seconds")
    }


def test_learning_ends_where_losses_hardly_change_or_at_last() -> None:
    method = FedALA(threshold=0.1)
    assert method._changes([1.0] * 10) and not method._changes([1.0] * 11)
    assert method._changes([0.0, 1.0] * 6) and not method._changes([9.0, *[1.0] * 10])
    assert method._changes([0.0, 1.0] * 49) and not method._changes([0.0, 1.0] * 50)


def test_what_is_learned_costs_operations_but_no_samples_and_nothing_is_sent() -> None:
    """Clients of 139 samples or so, of which 80 percent, in each round but their first; 11 times in the second."""
    words = [word for word in SMALL if word != "C=0.5"]
    one, other = (trainer(f"algorithm={name}", "C=1", *words) for name in ("fedavg", "fedala"))
    learned = sum(int(0.8 * size) for size in one.sole_run.shard_sizes.tolist())
    for passes in (0, 11, 12):
        one.run_round()
        other.run_round()
        assert other.sole_run.computed == one.sole_run.computed + passes * learned
    plain, figures = one.evaluate()[0], other.evaluate()[0]
    assert {name: figures[name] for name in ("samples", "bytes_up", "bytes_down", "messages")} == {
        name: plain[name] for name in ("samples", "bytes_up", "bytes_down", "messages")
    }
    assert float(figures["seconds"] or 0) > float(plain["seconds"] or 0)


def test_clients_are_judged_with_what_they_would_begin_a_round_with() -> None:
    run = trainer("algorithm=fedala", "algorithm.eta=5", "algorithm.threshold=10", *SMALL)
    met: set[int] = set()
    for _ in range(3):
        met |= set(plan_round(run.sole_run).ids.tolist())
        run.run_round()
    clients, higher = run.cohorts.uncharged(run.sole_run, 0, np.arange(6), run.state), run.group.columns["adaptive"]
    models = run.sole_run.experiment.algorithm.personal_models(run.state, clients)
    new, old = higher.of(run.state.model), clients.state["local"]
    expected = run.state.model.repeat(6, 1)
    higher.write(expected, old + (new - old) * clients.state["weights"])
    assert_exact(models, expected)
    for client in {*range(6)} - met:
        assert torch.equal(models[client], run.state.model[0])
    assert not torch.equal(models, run.state.model.repeat(6, 1))


@pytest.mark.parametrize("on_disk", [True, False])
def test_what_clients_learn_survives_an_interruption(on_disk: bool, tmp_path: Path) -> None:
    e = experiment("algorithm=fedala", "algorithm.eta=3", "algorithm.threshold=10", "algorithm.s=30", *SMALL, "participation.dropout=0.3")
    whole, first, second = (Trainer(e, engine="stacked", client_folders=[tmp_path / str(i)] if on_disk else None) for i in (0, 1, 1))
    for run, rounds in ((whole, 5), (first, 4)):
        for _ in range(rounds):
            run.run_round()
    second.restore(first.checkpoint())
    finish(second)
    assert torch.equal(whole.state.model, second.state.model)
    assert whole.evaluate() == second.evaluate()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("algorithm.s=120", r"algorithm\.s=120\.0: choose a percentage, from 0 to 100"),
        ("algorithm.eta=-1", r"algorithm\.eta=-1\.0: must be 0 or more"),
        ("uplink=topk", r"uplink=topk: encodes what is sent to be averaged at the end of a round, and algorithm=fedala"),
        ("noise_scale=true", r"algorithm=fedala has no such rounds"),
    ],
)
def test_what_does_not_fit_is_refused(words: str, line: str) -> None:
    with pytest.raises(UserError, match=line):
        experiment("algorithm=fedala", words, *SMALL)
