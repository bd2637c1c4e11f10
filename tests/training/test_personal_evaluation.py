"""Models of clients on their own shares of the validation and test samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from fl_hydra.algorithms.fedper import FedPer
from fl_hydra.seams.clients import Clients
from fl_hydra.seams.rows import Outputs
from fl_hydra.training.personal_evaluation import PersonalScores
from fl_hydra.training.personal_shares import deal_shares
from fl_hydra.training.samples import Samples
from tests.support.make import trainer
from tests.support.personal import FIGURES

SMALL = ("algorithm=fedper", "K=6", "C=0.5", "J=3", "precision=fp64", "rounds=4", "batch_size=16", "sharding=classes", "N_c=3")


def test_shares_are_disjoint_and_in_proportion() -> None:
    counts = np.array([[10, 0, 3], [20, 0, 0], [0, 0, 3]])
    labels = np.repeat([0, 1, 2], [10, 4, 3])
    shares = deal_shares(counts, labels, seed=0)
    dealt = np.bincount(np.concatenate(shares), minlength=len(labels))
    assert dealt.max() == 1 and not dealt[labels == 1].any(), "nobody has trained on class 1"
    assert [[int((labels[share] == label).sum()) for label in range(3)] for share in shares] == [[3, 0, 2], [7, 0, 0], [0, 0, 1]]


def test_equal_clients_are_dealt_equally_many() -> None:
    """Whatever their numbers: of equal remainders none goes to the first clients for every class."""
    labels = np.repeat(np.arange(10), 14)
    sizes = np.array([len(share) for share in deal_shares(np.full((100, 10), 15), labels, seed=3)])
    assert sizes.min() == 1 and sizes.max() == 2 and 10 < sizes[:50].sum() - 50 < 30, "140 samples"
    others = np.array([len(share) for share in deal_shares(np.full((100, 10), 15), labels, seed=4)])
    assert (sizes != others).any(), "it is drawn"


def test_figures() -> None:
    scores = PersonalScores(np.array([1.0, 2.0, 3.0]), np.array([0.9, 0.5, 0.1]), np.array([2, 1, 1]))
    assert scores.figures("p") == pytest.approx(FIGURES)


def test_the_worst_tenth_is_rounded_up() -> None:
    """Of eleven clients two."""
    worst = PersonalScores(np.ones(11), np.arange(10, -1, -1) / 10, np.ones(11, int)).figures("p")["p/acc_worst_tenth"]
    assert worst == pytest.approx(0.05)


def test_every_sample_is_looked_at_once_by_its_client() -> None:
    run = trainer(*SMALL)
    while not run.finished:
        run.run_round()
    figures = run.evaluate()[0]
    split, layout, right, clients = run.split, run.group.layout, 0.0, 0
    shares = deal_shares(run.sole_run.facts.label_counts, split.test.targets.numpy(), 0)  # type: ignore[arg-type]
    assert sum(map(len, shares)) == len(split.test)
    heads = run.sole_run.clients.read(np.arange(6), "personal")
    for k, share in enumerate(shares):
        model = run.state.model.clone()
        run.group.personal.write(model, heads[k][None])
        module = run.group.architecture.build().double()
        logits = torch.func.functional_call(module, layout.views(model[0]), (split.test.plain(torch.from_numpy(share)),))
        right += float((logits.argmax(-1) == split.test.targets[share]).double().mean())
        clients += 1
    assert figures["personal/test/acc"] == pytest.approx(right / clients, abs=1e-12)
    assert figures["personal/test/clients"] == 6 and figures["test/acc"] is None and figures["val/loss"] is None


@dataclass
class Majority(FedPer):
    """Clients that predict what they have most of, whatever they see; and adapt by a step along their whole gradient."""

    predicts: ClassVar[bool] = True

    def adapt(self, models: Tensor, clients: Clients) -> Tensor:
        return models - 0.1 * clients.gradient(models)

    def predictor(self, clients: Clients, model: Tensor) -> Callable[[Outputs], Tensor]:
        (client,) = clients.ids
        own, targets = clients.outputs(int(client), model)
        assert len(own.features) == len(targets) == clients.facts.sizes[client]
        return lambda outputs: torch.bincount(targets, minlength=10).to(outputs.logits.dtype).expand_as(outputs.logits)


def test_adapted_models_and_other_predictions_are_judged_and_not_charged() -> None:
    run = trainer(*SMALL, algorithm=Majority())
    run.run_round()
    before = (run.sole_run.computed, run.sole_run.forwarded, run.sole_run.seconds)
    figures = run.evaluate()[0]
    counts, labels = run.sole_run.facts.label_counts, run.split.validation.targets.numpy()
    assert counts is not None
    shares = deal_shares(counts, labels, 0)
    expected = np.mean([(labels[share] == counts[client].argmax()).mean() for client, share in enumerate(shares)])
    assert figures["personal/val/acc"] == pytest.approx(expected)
    assert (run.sole_run.computed, run.sole_run.forwarded, run.sole_run.seconds) == before


@dataclass
class Marked(FedPer):
    """Clients that predict label 0 or label 9, whatever they see."""

    predicts: ClassVar[bool] = True

    @property
    def choices(self) -> tuple[Mapping[str, float], ...]:
        return ({"label": 0}, {"label": 9})

    def predictor(self, clients: Clients, model: Tensor) -> Callable[[Outputs], Tensor]:
        return lambda outputs: torch.eye(10, dtype=outputs.logits.dtype)[[0, 9], None].expand(2, *outputs.logits.shape[1:])


@pytest.mark.parametrize("best", [0, 9])
def test_the_choice_that_is_best_on_validation_samples_of_drawn_clients_is_used_for_all(best: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test samples, and those of a client that is held out, would have chosen the other label."""
    other = 9 - best
    run = trainer(*SMALL, "participation.held_out=5", "evaluation.joining_steps=0", algorithm=Marked())
    run.run_round()
    validation, test = run.split.validation, run.split.test
    shares = run.groups[0].personal._shares.of(run.sole_run, "val", torch.arange(len(validation)))[1]  # dealt by what labels are now
    assert all(share is not None and len(share) > 3 for share in shares)
    for samples in (validation, test):
        monkeypatch.setattr(samples, "targets", torch.full_like(samples.targets, other))
    for share in shares[:5]:
        assert share is not None
        validation.targets[share] = 3
        validation.targets[share[0]] = best
    figures = run.evaluate()[0]
    assert figures["personal/choice/label"] == best
    assert figures["personal/val/acc"] > 0 and figures["personal/test/acc"] == 0


@pytest.mark.parametrize("head_alone", [True, False])
def test_models_are_tuned_by_plain_steps_on_a_clients_first_batches(head_alone: bool) -> None:
    run = trainer(*SMALL)
    part, layout = run.sole_run, run.group.layout
    ids = np.array([4, 1])
    clients = run.cohorts.uncharged(part, 0, ids, run.state)
    columns = layout.select("head", "") if head_alone else layout.select("all", "")
    tuned = clients.tune(
        run.state.model.repeat(2, 1), 3, torch.tensor([[0.1], [0.2]], dtype=torch.float64), columns if head_alone else None
    )
    for client, rate, found in zip(ids.tolist(), (0.1, 0.2), tuned, strict=True):
        indices = torch.from_numpy(part.sampler.indices(client, 0, 48)).view(3, 16)
        vector = run.state.model[0].clone()
        stream = torch.tensor(part.augmentation_streams(np.array([client])))
        for j, batch in enumerate(indices):
            drawn = run.split.train.drawn(batch, stream.expand(16), torch.arange(16 * j, 16 * j + 16))
            given = vector.clone().requires_grad_()
            logits = torch.func.functional_call(run.group.architecture.build().double(), layout.views(given), (drawn,))
            (step,) = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, run.split.train.targets[batch]), given)
            columns.write(vector, columns.of(vector) - rate * columns.of(step))
        torch.testing.assert_close(found, vector, rtol=0, atol=1e-12)
    assert torch.equal(clients.tune(run.state.model.repeat(2, 1), 0), run.state.model.repeat(2, 1)) and not part.computed


def test_tuning_in_training_and_the_servers_work_are_charged() -> None:
    run = trainer(*SMALL)
    part = run.sole_run
    everyone = run.cohorts.everyone(part, 0, run.state)
    everyone.tune(run.state.model.repeat(6, 1), 2)
    everyone.charge_server(7)
    assert part.computed == 6 * 2 * 16 and part.server_flops == 7
    run.restore(run.checkpoint())
    assert part.server_flops == 7


@pytest.mark.parametrize("method", ["fedavg_ft", "pfedhn"])
def test_a_clients_model_is_the_same_bit_by_bit_whoever_is_judged_with_it(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = (f"algorithm={method}", "K=18", "C=0.5", "J=2", "batch_size=16", "rounds=2", "participation.held_out=17", "sharding=iid")
    run = trainer(*words, "evaluation.joining_steps=2", engine="stacked")
    run.run_round()
    judged: list[Tensor] = []
    evaluate = run.group.engine.evaluate

    def seen(models: Tensor, samples: Samples, which: Tensor | None = None) -> Tensor:
        judged.append(models[0])
        return evaluate(models, samples, which)

    monkeypatch.setattr(run.group.engine, "evaluate", seen)
    run.evaluate()
    for client in range(18):
        named = dict(run.client_module(client).model.named_parameters())
        alone = run.group.layout.flat([named[name] for name in run.group.layout.names])
        assert any(torch.equal(alone, model) for model in judged), client
