"""pFedHN: a hypernetwork at the server, and clients that change what it makes."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.func import functional_call

from fl_hydra.algorithms.base import State
from fl_hydra.algorithms.pfedhn import PFedHN
from fl_hydra.errors import UserError
from fl_hydra.seams import hypernetwork
from fl_hydra.seams.clients import Clients
from fl_hydra.seams.fabric import Fabric
from fl_hydra.seams.rows import Batch
from fl_hydra.sweeping.grid import with_own
from fl_hydra.training.planning import plan_round
from fl_hydra.training.trainer import Trainer
from tests.support.exact import assert_exact
from tests.support.make import PROJECT, experiment, trainer
from tests.support.small import TINY

SMALL = ("algorithm=pfedhn", "algorithm.hidden_units=5", "K=4", "rounds=4", "sharding=quantity", *TINY)
ONE = (*SMALL, "C=0.25", "J=1", "optimizer=sgd", "optimizer.lr=0.1", "optimizer.weight_decay=0")


class Reference(nn.Module):
    """The hypernetwork of a run, from modules of PyTorch."""

    def __init__(self, run: Trainer, layers: int) -> None:
        super().__init__()
        carried = run.state.carried
        (K, width), (P, units) = carried["embeddings"].shape[1:], carried["heads"].shape[1:]
        units -= 1
        self.embeddings = nn.Embedding(K, width)
        trunk: list[nn.Module] = [nn.Linear(width, units)]
        for _ in range(layers):
            trunk += [nn.ReLU(), nn.Linear(units, units)]
        self.trunk, self.heads = nn.Sequential(*trunk), nn.Linear(units, P)
        self.double()
        nn.utils.vector_to_parameters(carried["trunk"].flatten().clone(), self.trunk.parameters())
        with torch.no_grad():
            self.embeddings.weight.copy_(carried["embeddings"][0])
            self.heads.weight.copy_(carried["heads"][0, :, :-1])
            self.heads.bias.copy_(carried["heads"][0, :, -1])

    def forward(self, ids: Tensor) -> Tensor:
        return self.of(self.embeddings(ids))

    def of(self, embeddings: Tensor) -> Tensor:
        out: Tensor = self.heads(self.trunk(embeddings))
        return out

    def assert_equals(self, run: Trainer) -> None:
        """Each weight is the run's."""
        carried = run.state.carried
        assert_exact(carried["embeddings"][0], self.embeddings.weight.detach())
        assert_exact(carried["trunk"].flatten(), nn.utils.parameters_to_vector(self.trunk.parameters()).detach())
        assert_exact(carried["heads"][0], torch.cat([self.heads.weight, self.heads.bias[:, None]], 1).detach())


def carried(run: Trainer) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in run.state.carried.items()}


def finish(run: Trainer) -> Trainer:
    while not run.finished:
        run.run_round()
    return run


@pytest.mark.parametrize("layers", [0, 2])
def test_a_step_of_one_client_is_the_rate_times_the_gradient_through_the_hypernetwork(layers: int) -> None:
    """Of one local step without momentum: d = lr times the gradient of the loss at h(e), so that J^T d is that of loss(h(e))."""
    run = trainer(*ONE, f"algorithm.hidden_layers={layers}", "algorithm.momentum=0", "algorithm.weight_decay=0", "algorithm.alpha=0.3")
    reference, engine, seen = Reference(run, layers), run.group.engine, []
    (client,) = plan_round(run.sole_run).ids
    gradient = engine.gradient

    def watched(parameters: Tensor, batch: Batch, *more: Any, **named: Any) -> Tensor:
        seen.append((batch.inputs[0], batch.targets[0]))
        return gradient(parameters, batch, *more, **named)

    engine.gradient = watched  # type: ignore[method-assign]
    run.run_round()
    ((inputs, targets),) = seen
    model = run.group.layout.views(reference(torch.tensor([client])))
    logits = functional_call(run.group.architecture.build().double(), {name: value[0] for name, value in model.items()}, (inputs,))
    F.cross_entropy(logits, targets).backward()
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            assert parameter.grad is not None
            parameter.sub_(parameter.grad, alpha=0.1 * (0.01 if "embeddings" in name else 0.3))
    reference.assert_equals(run)
    assert run.state.carried["embeddings"][0, client].abs().max() > 0


@pytest.mark.parametrize("clip", [0.01, 50.0])
def test_steps_are_those_of_torchs_sgd(clip: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """All clients in each round, of unequal sizes; in blocks that do not divide the model's parameters."""
    monkeypatch.setattr(hypernetwork, "BLOCK", 6 * 7)
    run = trainer(*SMALL, "C=1", "J=3", "optimizer=sgdm", "optimizer.lr=0.05", f"algorithm.clip={clip}", "algorithm.embedding_lr=0.2")
    reference, ids, update = Reference(run, 3), torch.arange(4), PFedHN.update
    embeddings = reference.embeddings.weight
    groups: list[dict[str, Any]] = [
        {"params": [*reference.trunk.parameters(), *reference.heads.parameters()]},
        {"params": [embeddings], "lr": 0.2},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.01, momentum=0.9, weight_decay=1e-3)
    changes: list[Tensor] = []

    def watched(method: PFedHN, state: State, clients: Clients, starts: Tensor, ends: Tensor) -> None:
        changes.append(starts - ends)
        update(method, state, clients, starts, ends)

    monkeypatch.setattr(PFedHN, "update", watched)
    weights = torch.from_numpy(run.sole_run.shard_sizes / run.sole_run.shard_sizes.sum())[:, None]
    assert len(set(run.sole_run.shard_sizes.tolist())) > 2
    for _ in range(3):
        run.run_round()
        optimizer.zero_grad()
        (reference(ids) * changes.pop() * weights).sum().backward()
        assert embeddings.grad is not None
        embeddings.grad /= weights
        norm = nn.utils.clip_grad_norm_(reference.parameters(), clip)
        assert (norm > clip) == (clip < 1)
        optimizer.step()
        reference.assert_equals(run)


def test_a_frozen_hypernetwork_moves_the_embedding_of_its_client_alone() -> None:
    run = trainer(*ONE, "algorithm.alpha=0")
    before = carried(run)
    drawn = set()
    for _ in range(3):
        drawn |= set(plan_round(run.sole_run).ids.tolist())
        run.run_round()
    assert 0 < len(drawn) < 4
    after = run.state.carried
    assert torch.equal(after["trunk"], before["trunk"]) and torch.equal(after["heads"], before["heads"])
    moved = (after["embeddings"] != before["embeddings"]).any(-1)[0]
    assert {client for client in range(4) if moved[client]} == drawn


def test_who_drops_out_changes_nothing() -> None:
    run = trainer(*SMALL, "C=0.75", "J=2", "participation.dropout=0.5", "seed=1")
    gone = 0
    while not run.finished:
        plan, before = plan_round(run.sole_run), carried(run)
        assert plan.reports is not None
        run.run_round()
        moved = (run.state.carried["embeddings"] != before["embeddings"]).any(-1)[0].numpy()
        assert set(np.flatnonzero(moved)) == set(plan.ids[plan.reports])
        gone += int((~plan.reports).sum())
    assert gone


def test_initial_numbers_are_a_function_of_the_seed() -> None:
    one, same, single, other = (carried(trainer(*ONE, *more)) for more in ((), ("C=0.5",), ("precision=fp32",), ("seed=1",)))
    for name in ("embeddings", "trunk", "heads"):
        assert torch.equal(one[name], same[name])
        torch.testing.assert_close(one[name], single[name].double(), rtol=0, atol=1e-6)
        assert not torch.equal(one[name], other[name])
    assert one["embeddings"].shape == (1, 4, 2), "1 + K / 4 numbers"
    many = carried(trainer(*ONE, "K=100", "algorithm.embedding_size=7"))
    assert many["embeddings"].mean().abs() < 0.1 and abs(many["embeddings"].std() - 1) < 0.1
    first, heads = many["trunk"][0, 0, : 5 * 8], many["heads"]
    assert first.abs().max() < 7**-0.5 and first.abs().max() > 0.8 * 7**-0.5
    assert heads.abs().max() < 5**-0.5 and abs(heads.std() - (5 * 3) ** -0.5) < 0.02


def test_clients_get_their_models_and_send_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    run = trainer(*ONE)
    P, numbers = run.group.layout.size, run.state.carried["trunk"].numel() + run.state.carried["heads"].numel()
    reference, (client,) = Reference(run, 3), plan_round(run.sole_run).ids
    clients = run.cohorts.uncharged(run.sole_run, 0, np.arange(4), run._state_of(0))
    method = run.runs[0].experiment.algorithm
    models = method.personal_models(run._state_of(0), clients)
    assert_exact(models, reference(torch.arange(4)).detach())
    sent: list[Tensor] = []
    count_down = Fabric.count_down

    def watched(fabric: Fabric, values: Tensor, plain: bool = False) -> None:
        sent.append(values.clone())
        count_down(fabric, values, plain)

    monkeypatch.setattr(Fabric, "count_down", watched)
    run.run_round()
    (only,) = sent
    assert_exact(only[0], models[client])
    traffic = run.sole_run.traffic
    assert traffic.bytes_down == traffic.bytes_up == 8 * P and traffic.messages == 2
    metrics = run.evaluate()[0]
    assert metrics["server_flops"] == 6 * numbers and metrics["val/acc"] is None and metrics["personal/val/acc"] is not None
    finish(run)
    mean = run.state.carried["embeddings"][0].mean(0, keepdim=True)
    assert_exact(run.weights(), method._server(run.state).network.models(mean)[0])  # type: ignore[attr-defined]


def test_a_personal_classifier_is_neither_made_nor_sent() -> None:
    run = trainer(*ONE, "algorithm.personal_layers=head", "algorithm.weight_decay=0")
    own, before = run.group.personal, carried(run)
    finish(run)
    after = run.state.carried["heads"][0]
    unmade = own.of(torch.arange(run.group.layout.size))
    assert torch.equal(after[unmade], before["heads"][0, unmade]) and not torch.equal(after, before["heads"][0])
    heads, met = run.sole_run.clients.read(np.arange(4), "personal"), run.sole_run.cursors > 0
    initial = own.of(trainer(*ONE, "algorithm.personal_layers=head").state.model)
    assert [bool((head != initial).any()) for head in heads] == met.tolist() and 0 < met.sum() < 4
    clients = run.cohorts.uncharged(run.sole_run, 0, np.arange(4), run._state_of(0))
    assert torch.equal(own.of(run.runs[0].experiment.algorithm.personal_models(run._state_of(0), clients)), heads)
    assert run.sole_run.traffic.bytes_up == 4 * 8 * (run.group.layout.size - own.width)


@pytest.mark.parametrize("layers", ["none", "head"])
def test_clients_that_join_search_their_embeddings(layers: str) -> None:
    run = trainer(*ONE, f"algorithm.personal_layers={layers}", "algorithm.search_steps=2", "algorithm.search_lr=3")
    state, method, own = run._state_of(0), run.runs[0].experiment.algorithm, run.group.personal
    clients = run.cohorts.uncharged(run.sole_run, 0, np.array([1, 3]), state)
    models, before = method.personal_models(state, clients), carried(run)
    found = method.join(state, models.clone(), clients, 3)
    assert all(torch.equal(run.state.carried[name], tensor) for name, tensor in before.items()), "nothing is kept"
    reference = Reference(run, 3)
    embeddings = reference.embeddings.weight[[1, 3]].detach().requires_grad_()
    for steps in (2, 1):
        tuned = clients.tune(models, steps)
        made, changes = reference.heads(reference.trunk(embeddings)), models - tuned
        own.write(changes, torch.zeros_like(own.of(changes)))
        (gradient,) = torch.autograd.grad(made, embeddings, changes)
        embeddings = (embeddings - 3 * gradient).detach().requires_grad_()
        models = reference.heads(reference.trunk(embeddings)).detach()
        own.write(models, own.of(tuned))
    assert_exact(found, models)
    assert not torch.equal(found, method.personal_models(state, clients))


def test_held_out_clients_are_judged_after_their_search() -> None:
    searching, given = (trainer(*ONE, "participation.held_out=1|3", f"evaluation.joining_steps={steps}") for steps in (2, 0))
    judged = []
    for run in (searching, given):
        assert finish(run).evaluate()[0]["personal/val/clients_held_out"] == 2
        embeddings = run.state.carried["embeddings"][0, [0, 2]]
        assert_exact(run.weights(), Reference(run, 3).of(embeddings.mean(0)).detach())
        state = run._state_of(0)
        clients = [run.cohorts.uncharged(run.sole_run, 0, np.array(ids), state) for ids in ([0, 2], [1, 3])]
        judged.append([run.groups[0].personal.models(run.sole_run, state, some) for some in clients])
    assert torch.equal(judged[0][0], judged[1][0]) and (judged[0][1] != judged[1][1]).any(1).all()
    assert torch.equal(searching.state.carried["embeddings"], given.state.carried["embeddings"])
    assert set(np.flatnonzero(searching.sole_run.cursors)) <= {0, 2}


def test_a_run_that_goes_on_is_the_run() -> None:
    e = experiment(*SMALL, "C=0.5", "J=2", "optimizer=sgdm", "participation.dropout=0.2", "algorithm.personal_layers=head")
    whole, first, second = (Trainer(e, engine="loop") for _ in range(3))
    first.run_round()
    first.run_round()
    second.restore(first.checkpoint())
    finish(whole)
    finish(second)
    assert all(torch.equal(whole.state.carried[name], tensor) for name, tensor in second.state.carried.items())
    assert whole.evaluate() == second.evaluate()


def test_packed_seeds_are_the_runs_alone() -> None:
    """Also where a hypernetwork begins at an odd address."""
    seeds = [experiment(*SMALL, "C=0.5", "J=2", "precision=fp32", f"seed={seed}", f"algorithm.alpha={0.1 * seed}") for seed in (1, 2, 3)]
    together, alone = Trainer(*seeds, engine="loop"), [Trainer(each, engine="loop") for each in seeds]
    for run in (together, *alone):
        finish(run)
    for position, run in enumerate(alone):
        assert all(torch.equal(together.state.carried[name][position], tensor[0]) for name, tensor in run.state.carried.items())
        assert torch.equal(together.weights(position), run.weights())


def test_what_it_cannot_go_with(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = partial(pytest.raises, UserError)
    with refused(match="algorithm=pfedhn has an outer step of its own, in place of an outer optimizer's; leave server and its keys out"):
        experiment(*ONE, "server=adam")
    with refused(match="personal_layers=all: all layers stay with their client, so that the hypernetwork makes none; choose fewer"):
        trainer(*ONE, "algorithm.personal_layers=all")
    with refused(match=r"algorithm\.personal_layers=fc9: matches no parameter"):
        trainer(*ONE, "algorithm.personal_layers=fc9")
    for word, line in (
        ("hidden_units=0", "at least 1"),
        ("search_steps=0", "at least 1"),
        ("embedding_size=0", "at least 1 number is needed, or null"),
        ("momentum=1", "must be below 1"),
        ("clip=0", "greater than 0"),
        ("alpha=-1", "must be 0 or more"),
    ):
        with refused(match=rf"algorithm\.{word}.*{line}"):
            experiment(*ONE, f"algorithm.{word}")
    e = experiment(*ONE)
    P = trainer(*ONE).group.layout.size
    numbers = 4 * 2 + 5 * 3 + 3 * 5 * 6 + P * 6
    monkeypatch.setattr(hypernetwork, "free_memory", lambda device: 2 * 32 * numbers)
    Trainer(e, replace(e, seed=1), engine="loop")
    with refused(match=f"each of the 3 runs that train together, takes {3 * 32 * numbers:,} .*choose hydra.launcher.runs below 3, "):
        Trainer(e, replace(e, seed=1), replace(e, seed=2), engine="loop")
    monkeypatch.setattr(hypernetwork, "free_memory", lambda device: 10_000)
    with refused(
        match=f"a hypernetwork of {numbers:,} numbers for 4 clients and models of {P} takes {32 * numbers:,} bytes .* and 10,000 are"
    ):
        Trainer(e, engine="loop")


def test_the_comparison_of_methods_has_the_paper_s_clients() -> None:
    own = OmegaConf.to_container(OmegaConf.load(PROJECT / "sweeps/sweep/track_b/personalised.yaml").hydra.sweeper.own)
    assert isinstance(own, dict)
    e = experiment(*with_own(["algorithm=pfedhn", "samples=64000"], own) or ())  # type: ignore[arg-type]
    rule = e.optimizer
    assert (e.K, e.m, e.J) == (100, 1, 50)
    assert (rule.name, rule.hyper["momentum"]) == ("sgdm", 0.9)
    assert (rule.lr, rule.weight_decay, rule.clip) == (0.005, 5e-5, 50)
