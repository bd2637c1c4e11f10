"""MOON: a client's features, between the model that it received and its own previous one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fl_hydra.algorithms.moon import MOON
from fl_hydra.errors import UserError
from fl_hydra.training.planning import plan_round
from fl_hydra.training.trainer import Trainer
from tests.support.batches import NotesBatches
from tests.support.exact import assert_exact
from tests.support.losses import SMALL
from tests.support.make import experiment, trainer


class Recording(NotesBatches, MOON):
    """Notes batches."""


def module_at(run: Trainer, model: Tensor) -> nn.Module:
    module = run.group.architecture.build().double()
    with torch.no_grad():
        for parameter, value in zip(module.parameters(), run.group.layout.views(model).values(), strict=True):
            parameter.copy_(value)
    return module


def features_and_logits(module: nn.Module, inputs: Tensor, head: str) -> tuple[Tensor, Tensor]:
    kept: list[Tensor] = []
    handle = module.get_submodule(head).register_forward_pre_hook(lambda _, args: kept.append(args[0]))
    logits: Tensor = module(inputs)
    handle.remove()
    return kept[0], logits


@pytest.mark.parametrize("more", [(), ("participation.dropout=0.4",)], ids=["", "dropout"])
def test_steps_are_those_of_the_papers_equation(more: tuple[str, ...]) -> None:
    """In plain PyTorch, with two logits s / temperature of which the first is right; a client that drops out forgets its new model."""
    algorithm = Recording(mu=5.0, temperature=0.3)
    command = ("K=4", "C=0.5", "J=2", "precision=fp64", "rounds=6", "batch_size=8", "optimizer.lr=0.2", "optimizer.weight_decay=0")
    run = trainer("algorithm=moon", *command, *more, engine="stacked", algorithm=algorithm)
    head = str(run.group.layout.head)
    previous = {client: run.state.model[0].clone() for client in range(4)}
    moved = 0.0
    while not run.finished:
        plan, start = plan_round(run.sole_run), run.state.model[0].clone()
        algorithm.batches.clear()
        run.run_round()
        mean = torch.zeros_like(start)
        assert plan.reports is not None
        for row, client in enumerate(plan.ids.tolist()):
            module, others = module_at(run, start), [module_at(run, model) for model in (start, previous[client])]
            optimizer = torch.optim.SGD(module.parameters(), lr=0.2)
            for batch in algorithm.batches:
                optimizer.zero_grad()
                features, logits = features_and_logits(module, batch.inputs[row], head)
                with torch.no_grad():
                    compared = [features_and_logits(other, batch.inputs[row], head)[0] for other in others]
                cosines = torch.stack([F.cosine_similarity(features, other, dim=-1) for other in compared], 1) / 0.3
                contrast = F.cross_entropy(cosines, torch.zeros(len(cosines), dtype=torch.int64))
                (F.cross_entropy(logits, batch.targets[row]) + 5.0 * contrast).backward()
                optimizer.step()
            end = run.group.layout.flat(parameter.detach() for parameter in module.parameters())
            if plan.reports[row]:
                previous[client] = end
            mean += plan.weights[row] * end
        if plan.reports.any():
            assert_exact(run.state.model[0], mean)
        moved = max(moved, float((previous[client] - start).abs().max()))
    kept = run.sole_run.clients.read(np.arange(4), "state.previous")
    for client in range(4):
        assert_exact(kept[client], previous[client])
    assert moved > 0.01


@pytest.mark.parametrize("engine", ["loop", "stacked"])
def test_without_mu_it_is_fedavg_with_two_more_forward_passes(engine: str) -> None:
    one, other = (trainer(*words, *SMALL, engine=engine) for words in (("algorithm=fedavg",), ("algorithm=moon", "algorithm.mu=0")))
    while not one.finished:
        one.run_round()
        other.run_round()
    torch.testing.assert_close(other.state.model, one.state.model, rtol=1e-12, atol=1e-12)
    plain, contrasted = one.evaluate()[0], other.evaluate()[0]
    group, run = one.group, other.sole_run
    assert run.forwarded == 2 * run.computed == 2 * one.sole_run.computed
    assert contrasted["flops"] == float(plain["flops"] or 0) + 2 * 400 * group.forward_flops <= 2.2 * float(plain["flops"] or 0)
    assert contrasted["seconds"] == pytest.approx(5 / 3 * float(plain["seconds"] or 0))
    assert (contrasted["bytes_up"], contrasted["bytes_down"]) == (plain["bytes_up"], plain["bytes_down"])


def test_the_first_round_has_no_contrast() -> None:
    one, other = (trainer(*words, *SMALL) for words in (("algorithm=fedavg",), ("algorithm=moon", "algorithm.mu=10")))
    for run in (one, other):
        run.run_round()
    torch.testing.assert_close(other.state.model, one.state.model, rtol=1e-12, atol=1e-12)
    for run in (one, other):
        run.run_round()
    assert not torch.allclose(other.state.model, one.state.model, atol=1e-6)


def test_a_client_keeps_its_own_model_whatever_the_uplink_makes_of_it() -> None:
    words = ("algorithm=moon", *SMALL)
    plain, compressed = trainer(*words), trainer(*words, "uplink=topk", "uplink.fraction=0.01")
    for run in (plain, compressed):
        run.run_round()
    models = [run.sole_run.clients.read(np.arange(6), "state.previous") for run in (plain, compressed)]
    assert torch.equal(*models)
    assert not torch.equal(plain.state.model, compressed.state.model)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("algorithm.mu=-1", r"algorithm\.mu=-1.0: must be 0 or more"),
        ("algorithm.temperature=0", r"algorithm\.temperature=0.0: must be above 0"),
    ],
)
def test_numbers_out_of_range_are_refused(words: str, line: str) -> None:
    with pytest.raises(UserError, match=line):
        experiment("algorithm=moon", words, *SMALL)
