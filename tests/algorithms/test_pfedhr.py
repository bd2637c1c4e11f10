"""pFedHR: models of clients, their teachers, and what both cost."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fl_hydra.algorithms.base import State
from fl_hydra.algorithms.fedavg import FedAvg
from fl_hydra.errors import UserError
from fl_hydra.models.small import Small
from fl_hydra.runs.weights import parts_of
from fl_hydra.seams import teachers
from fl_hydra.seams.clients import Clients, Facts
from fl_hydra.seams.reassembly import Library, Pool, candidates, distilled
from fl_hydra.seams.rows import Outputs
from fl_hydra.training.planning import plan_round
from fl_hydra.training.trainer import Trainer
from tests.support.make import experiment, trainer

SMALL = ("algorithm=pfedhr", "K=6", "C=0.5", "J=2", "batch_size=16", "sharding=classes", "N_c=3", "precision=fp64")
OTHER = Small(filters=4, hidden=12)


def mixed(*more: str, **parts: Any) -> Any:
    """Clients with one of two architectures in turn."""
    return experiment(*SMALL, "samples=600", "algorithm.sfine=1", *more, architectures=(Small(), OTHER), **parts)


def kept(run: Trainer, client: int, name: str) -> Tensor:
    members = run.sole_run.members[run.sole_run.architectures.number(client)]
    return members.clients.read(np.array([client]), f"state.{name}")[0]


@dataclass
class Alone(FedAvg):
    """Every client trains a model of its own, and nobody sends anything."""

    needs_ends: ClassVar[bool] = True
    own_starts: ClassVar[bool] = True

    @property
    def global_model(self) -> bool:
        return False

    @property
    def public(self) -> int:
        return 200

    def client_state(self, models: Tensor, facts: Facts) -> dict[str, Tensor]:
        return {"model": models.clone()}

    def start(self, state: State, clients: Clients) -> Tensor:
        return clients.state["model"].clone()

    def update(self, state: State, clients: Clients, starts: Tensor, ends: Tensor) -> None:
        clients.state["model"].copy_(ends)


@pytest.mark.parametrize("engine", ["loop", "stacked"])
def test_without_distillation_every_client_trains_alone(engine: str) -> None:
    runs = [
        Trainer(experiment(*SMALL, "rounds=4", "algorithm.alpha=0", "algorithm.sfine=0"), engine=engine),
        Trainer(experiment(*SMALL, "rounds=4", algorithm=Alone()), engine=engine),
    ]
    for run in runs:
        while not run.finished:
            run.run_round()
    assert all(torch.equal(kept(runs[0], client, "model"), kept(runs[1], client, "model")) for client in range(6))
    (one,), (other,) = (run.evaluate() for run in runs)
    assert one["flops"] == other["flops"] and one["server_flops"] > 0, "teachers are not asked for nothing"


def test_with_one_architecture_and_one_client_its_teacher_is_its_model() -> None:
    run = trainer(*SMALL, "K=1", "C=1", "sharding=iid", "N_c=null", "rounds=2", "algorithm.sfine=0")
    for _ in range(2):
        run.run_round()
        assert torch.equal(kept(run, 0, "teacher"), kept(run, 0, "model"))
        assert Library.decoded(kept(run, 0, "recipe").tolist()) == ((0, 0), (0, 1), (0, 2))
    traffic, size = run.sole_run.traffic, 8 * run.group.layout.size
    assert (traffic.bytes_up, traffic.bytes_down, traffic.messages) == (2 * size, 2 * size, 4)


def test_the_loss_is_the_divergence_from_the_teacher() -> None:
    logits, teacher = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    targets = torch.tensor([0, 1, 2, 3, 0])
    p, q = logits.softmax(1), teacher.softmax(1)
    expected = -p[torch.arange(5), targets].log() + 0.3 * (q * (q / p).log()).sum(1)
    found = distilled(Outputs(logits, logits[:, :0]), targets, teacher=teacher, alpha=torch.tensor(0.3, dtype=torch.float64))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
    own = distilled(Outputs(logits, logits[:, :0]), targets, teacher=logits, alpha=torch.tensor(0.3, dtype=torch.float64))
    torch.testing.assert_close(own, -p[torch.arange(5), targets].log(), rtol=0, atol=1e-14)


def test_a_step_descends_it() -> None:
    """A client's second round, by hand."""
    run = trainer(
        *SMALL,
        "K=1",
        "C=1",
        "J=1",
        "sharding=iid",
        "N_c=null",
        "rounds=2",
        "optimizer=sgd",
        "algorithm.alpha=0.7",
        "dataset.crop=0",
        engine="stacked",
    )
    run.run_round()
    before, teacher = kept(run, 0, "model"), kept(run, 0, "teacher")
    assert not torch.equal(before, teacher), "it was fine-tuned"
    plan, split = plan_round(run.sole_run), run.split
    which = torch.from_numpy(run.sole_run.draw(plan, 16)[0])
    module, layout = run.group.architecture.build().double(), run.group.layout

    def logits(vector: Tensor) -> Tensor:
        found: Tensor = torch.func.functional_call(module, layout.views(vector), (split.train.plain(which),))
        return found

    vector = before.clone().requires_grad_()
    loss = torch.nn.functional.cross_entropy(logits(vector), split.train.targets[which])
    with torch.no_grad():
        q = logits(teacher).log_softmax(1)
    loss = loss + 0.7 * torch.nn.functional.kl_div(logits(vector).log_softmax(1), q, log_target=True, reduction="batchmean")
    (gradient,) = torch.autograd.grad(loss, [vector])
    optimizer = run.sole_run.experiment.optimizer
    run.run_round()
    expected = before - float(plan.rates[0, 0]) * (gradient + optimizer.weight_decay * before)
    decayed = [name for name, weight in zip(layout.names, layout.weights, strict=True) if weight]
    for name, view in layout.views(kept(run, 0, "model")).items():
        if name in decayed:
            torch.testing.assert_close(view, layout.views(expected)[name], rtol=0, atol=1e-12)


def test_the_best_of_the_candidates_is_given_and_paid_for() -> None:
    run = Trainer(mixed("samples=96"), engine="loop")
    run.run_round()
    library, public = Library.of(run.sole_run.architectures), torch.from_numpy(run.sole_run.public)
    inputs = run.split.train.plain(public)
    met = [client for client in range(6) if (kept(run, client, "recipe") >= 0).any()]
    assert len(met) == 3
    given = {}
    for client in met:
        recipe = library.decoded(kept(run, client, "recipe").tolist())
        given[client] = library.model(recipe), kept(run, client, "teacher")
    for client in met:
        number = run.sole_run.architectures.number(client)
        _, own = library.representations(number, kept(run, client, "model"), inputs)
        scores = {other: float(torch.cosine_similarity(made.logits(vector, inputs), own).mean()) for other, (made, vector) in given.items()}
        assert scores[client] == pytest.approx(max(scores.values()), abs=1e-12)
    traffic = run.sole_run.traffic
    sizes = [group.rows.layout.size for group in run.groups]
    assert traffic.bytes_up == 8 * sum(sizes[client % 2] for client in met)
    assert traffic.bytes_down == 8 * sum(made.layout.size for made, _ in given.values())
    assert (traffic.messages, traffic.averages) == (6, 1)


def counted(module: nn.Module) -> tuple[int, int]:
    """Operations for a sample, of a forward pass and of one with its backward pass: two for each product of a layer's."""
    found: list[tuple[int, int]] = []

    def count(part: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        if isinstance(part, nn.Conv2d | nn.Linear):
            products = output.numel() * part.weight[0].numel()
            found.append((2 * products, 4 * products if found else 2 * products))  # the gradient of a model's inputs is not asked for
        elif isinstance(part, Pool):
            channels, rows, columns = inputs[0].shape[1:]
            products = channels * part.height * columns * (rows + part.width)
            found.append((2 * products, 2 * products))  # its weights are constants

    for part in module.modules():
        part.register_forward_hook(count)
    module(torch.zeros(1, 1, 16, 16, device="meta"))
    forward, backward = (sum(some) for some in zip(*found, strict=True))
    return forward, forward + backward


def test_what_teachers_cost_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rounds of all clients: the second is the first in which they have teachers."""
    found: list[list[tuple[tuple[int, int], ...]]] = []

    def watched(*arguments: Any) -> Any:
        made = candidates(*arguments)
        found.append([tuple((piece.number, piece.place) for piece in candidate) for candidate in made])
        return made

    monkeypatch.setattr(teachers, "candidates", watched)
    run = Trainer(mixed("C=1", "J=1", "samples=192", "algorithm.public_samples=150", "algorithm.sfine=2"), engine="loop")
    library, seen = Library.of(run.sole_run.architectures), []
    for _ in range(2):
        seen.append([library.decoded(kept(run, client, "recipe").tolist()) for client in range(6)])
        run.run_round()
    assert not any(seen[0]) and all(seen[1]) and len(set(found[0] + found[1])) > 2, "of several forms"
    cost = {recipe: counted(copy.deepcopy(library.model(recipe).module)) for recipe in {*found[0], *found[1], *map(library.whole, (0, 1))}}

    server = 0
    for filters, hidden in ((8, 32), (4, 12)):  # of three clients each
        widths = (256 + 36 * filters) + (36 * filters + hidden) + (hidden + 10)  # in and out of three layers
        server += 2 * 3 * (150 * cost[library.whole(int(filters == 4))][0] + 2 * 128**2 * widths)
    server += sum(150 * (2 * cost[recipe][1] + cost[recipe][0]) for recipe in found[0] + found[1])
    own = sum(16 * 2 * cost[library.whole(client % 2)][1] for client in range(6))
    (row,) = run.evaluate()
    assert row["server_flops"] == server
    assert row["flops"] == own + sum(16 * cost[recipe][0] for recipe in seen[1])
    sizes = [group.rows.layout.size for group in run.groups]
    given = [library.decoded(kept(run, client, "recipe").tolist()) for client in range(6)]
    assert row["bytes_up"] == 8 * 2 * 3 * sum(sizes)
    assert row["bytes_down"] == 8 * sum(library.model(recipe).layout.size for recipe in seen[1] + given)


def test_public_samples_belong_to_nobody() -> None:
    run, plain = trainer(*SMALL, "algorithm.public_samples=100"), trainer(*SMALL, "algorithm=fedavg")
    public, labels = run.sole_run.public, run.split.sample_owners.labels
    assert labels is not None and len(public) == 100
    assert sorted([*public, *run.sole_run.shards.indices]) == list(range(len(labels)))
    assert len(run.split.validation) == len(plain.split.validation) and len(run.split.test) == len(plain.split.test)
    assert np.abs(np.bincount(labels[public]) - np.bincount(labels) * 100 / len(labels)).max() < 1
    assert run.sole_run.experiment.train_samples == len(labels) - 100
    other = trainer(*SMALL, "algorithm.public_samples=100", "seed=1")
    assert np.array_equal(other.sole_run.public, public), "those of all seeds are the same"
    counts = run.sole_run.facts.label_counts
    assert counts is not None and ((counts > 0).sum(1) == 3).all() and np.ptp(counts.sum(1)) <= 1


@pytest.mark.parametrize("engine", ["loop", "stacked"])
def test_a_resumed_run_is_the_run(tmp_path: Path, engine: str) -> None:
    made = mixed("participation.dropout=0.3")
    whole = Trainer(made, engine=engine)
    rows = []
    while not whole.finished:
        whole.run_round()
        rows += whole.evaluate()
    last, saved = Trainer(made, engine=engine, client_folders=[tmp_path], state_on="disk"), dict[str, Any]()
    for round in range(len(rows)):
        if round:
            last.restore(saved)
        last.run_round()
        assert last.evaluate()[0] == rows[round]
        saved = last.checkpoint()
        last = Trainer(made, engine=engine, client_folders=[tmp_path], state_on="disk")
    last.restore(saved)
    assert parts_of(last, 0) == parts_of(whole, 0)


def test_packed_runs_are_the_runs_alone() -> None:
    each = [
        mixed(f"seed={seed}", f"algorithm.alpha={alpha}", f"algorithm.server_lr={lr}")
        for seed, alpha, lr in ((0, 0, 0.01), (1, 0.5, 0.001))
    ]
    runs = [Trainer(*each, engine="stacked"), *(Trainer(one, engine="stacked") for one in each)]
    for run in runs:
        while not run.finished:
            run.run_round()
    together = runs[0].evaluate([0, 1])
    assert together == [runs[1].evaluate()[0], runs[2].evaluate()[0]]
    assert [parts_of(runs[0], run) for run in (0, 1)] == [parts_of(run, 0) for run in runs[1:]]


def test_packed_runs_of_which_one_has_no_client_of_an_architecture() -> None:
    each = [mixed("C=0.34", "samples=192", "algorithm.candidates=1", f"seed={seed}", f"algorithm.alpha={seed / 2}") for seed in (1, 0)]
    runs = [Trainer(*each, engine="loop"), *(Trainer(one, engine="loop") for one in each)]
    of = [{client % 2 for client in plan_round(run).ids} for run in runs[0].runs]
    assert of == [{0}, {1}], "the second run has no rows of the first architecture, behind those that were made for both"
    for run in runs:
        while not run.finished:
            run.run_round()
    assert runs[0].evaluate([0, 1]) == [runs[1].evaluate()[0], runs[2].evaluate()[0]]
    assert [parts_of(runs[0], run) for run in (0, 1)] == [parts_of(run, 0) for run in runs[1:]]


def test_architectures_are_options_of_model() -> None:
    made = experiment(*SMALL, "model=small", "model.hidden=20", "algorithm.architectures='small|lenet_gn'")
    assert [model.option for model in made.models] == ["small", "lenet_gn"] and made.models[0] == Small(hidden=20)
    assert experiment(*SMALL).models == (Small(),) and experiment(*SMALL).architectures == ()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("algorithm.architectures='small|lent'",), "no model=lent; choose from.*lenet"),
        (("model=lenet", "algorithm.architectures='small|lenet_gn'"), "model=lenet: no client has it.*choose model=small"),
        (("engine=graph",), "engine=graph: .*choose stacked"),
        (("algorithm.public_samples=5000",), "public_samples=5000: .* choose fewer"),
        (("algorithm.public_samples=1290",), "batch_size=.* training samples besides algorithm.public_samples=1290; choose 1 to"),
        (("algorithm.public_samples=0",), "public_samples=0: must be at least 1"),
        (("server=adam",), "leave server out"),
        (("uplink=qsgd",), "leave uplink out"),
        (("local_steps=loss",), "local_steps=loss: .*choose"),
    ],
)
def test_what_it_cannot_go_with_is_refused(words: tuple[str, ...], line: str) -> None:
    with pytest.raises(UserError, match=line):
        experiment(*SMALL, *words)


@pytest.mark.parametrize("model", ["resnet20", "lenet_bn"])
def test_models_that_cannot_be_taken_apart_are_refused(model: str) -> None:
    with pytest.raises(UserError, match=r"algorithm=pfedhr.*choose"):
        trainer(*SMALL, f"model={model}")
