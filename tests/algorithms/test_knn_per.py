"""kNN-Per: the limits in which its predictions are known, and its training, which is FedAvg's."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fl_hydra.errors import UserError
from fl_hydra.seams import neighbours
from fl_hydra.seams.neighbours import Memory, mixed
from fl_hydra.seams.rows import Outputs
from fl_hydra.training.trainer import Trainer
from tests.support.exact import assert_exact
from tests.support.make import experiment, trainer, write_shakespeare
from tests.support.small import finish, normal

SMALL = ("K=6", "C=0.5", "J=3", "precision=fp64", "rounds=4", "batch_size=16", "sharding=dirichlet_classes", "sharding.alpha=1")


def predictor(run: Trainer, client: int) -> tuple[Callable[[Outputs], Tensor], Outputs, Tensor]:
    """How a client of a run predicts, and the model's outputs for its own samples, [1, n, ...], with their targets."""
    clients = run.cohorts.uncharged(run.sole_run, 0, np.array([client]), run.state)
    algorithm = run.sole_run.experiment.algorithm
    outputs, targets = clients.outputs(client, run.state.model)
    return algorithm.predictor(clients, run.state.model), Outputs(outputs.logits[None], outputs.features[None]), targets


@pytest.fixture(scope="module")
def after() -> Callable[..., Trainer]:
    """Trains a run of given numbers, or takes the weights of one that trained before, since they are the same."""
    models: list[Tensor] = []

    def made(*numbers: str) -> Trainer:
        run = trainer("algorithm=knn_per", *numbers, *SMALL)
        if not models:
            models.append(finish(trainer("algorithm=knn_per", *SMALL)).state.model)
        run.state.model.copy_(models[0])
        return run

    return made


@pytest.mark.parametrize("engine", ["loop", "stacked"])
def test_it_trains_as_fedavg_and_costs_what_that_costs(engine: str) -> None:
    one, other = (finish(trainer(f"algorithm={name}", *SMALL, engine=engine)) for name in ("fedavg", "knn_per"))
    assert torch.equal(one.state.model, other.state.model)
    plain, figures = one.evaluate()[0], other.evaluate()[0]
    assert {name: figures[name] for name in plain} == plain, "communication, operations and time too"
    assert figures["personal/choice/k"] == 10 and 0 <= float(figures["personal/choice/lam"] or 0) <= 1
    assert float(figures["personal/val/acc"] or 0) > float(plain["val/acc"] or 0)


def test_without_weight_the_global_model_predicts_to_the_last_bit(after: Callable[..., Trainer]) -> None:
    predict, outputs, _ = predictor(after("algorithm.lam=0"), 2)
    assert torch.equal(predict(outputs), outputs.logits)


def test_the_nearest_of_its_own_samples_is_the_sample_itself(after: Callable[..., Trainer]) -> None:
    for client in range(6):
        predict, outputs, targets = predictor(after("algorithm.lam=1", "algorithm.k=1"), client)
        assert torch.equal(predict(outputs)[0].argmax(-1), targets)


def test_with_all_neighbours_and_infinite_scale_it_is_the_prior_of_a_clients_labels(after: Callable[..., Trainer]) -> None:
    run = after("algorithm.lam=1", "algorithm.scale=inf")
    sizes, counts = run.sole_run.shard_sizes, run.sole_run.facts.label_counts
    client = int(sizes.argmin())
    predict, outputs, _ = predictor(after("algorithm.lam=1", "algorithm.scale=inf", f"algorithm.k={sizes[client]}"), client)
    prior = torch.from_numpy(counts[client] / sizes[client])  # type: ignore[index]
    torch.testing.assert_close(predict(outputs)[0].softmax(-1), prior.expand(sizes[client], 10), rtol=0, atol=1e-14)


def test_probabilities_on_paper() -> None:
    """At 0 the neighbours lie at -1, 2 and 3, of labels 0, 1 and 0: squared distances 1, 4 and 9, divided by 2 features and scale 2."""
    memory = Memory(torch.tensor([[3.0, 0], [-1, 0], [2, 0], [50, 0]]).double(), torch.tensor([0, 0, 1, 2]))
    found = memory.probabilities(torch.zeros(1, 2).double(), [1, 2, 3], torch.tensor([[2.0]]), 3)
    a, b, c = math.exp(-1 / 4), math.exp(-4 / 4), math.exp(-9 / 4)
    expected = [[1, 0, 0], [a / (a + b), b / (a + b), 0], [(a + c) / (a + b + c), b / (a + b + c), 0]]
    torch.testing.assert_close(found[:, 0], torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-15)


def test_a_mixture_is_of_probabilities() -> None:
    logits, others, weights = 30 * normal(5, 4), normal(3, 5, 4, seed=1).softmax(-1), torch.tensor([0, 0.3, 1]).double()
    others[0, 0] = torch.tensor([0, 1, 0, 0])
    found = mixed(logits, others, weights)
    expected = (weights[:, None, None] * others[:, None] + (1 - weights[:, None, None]) * logits.softmax(-1)).flatten(0, 1)
    torch.testing.assert_close(found.softmax(-1), expected, rtol=0, atol=1e-14)
    assert torch.isfinite(found.log_softmax(-1)).all()


def test_large_shards_are_searched_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    memory, queries = Memory(normal(40, 3), torch.arange(40) % 4), normal(23, 3, seed=1)
    whole = memory.probabilities(queries, [1, 5], torch.tensor(0.5), 4)
    monkeypatch.setattr(neighbours, "NUMBERS_AT_ONCE", 90)
    assert torch.equal(memory.probabilities(queries, [1, 5], torch.tensor(0.5), 4), whole)


def test_a_client_remembers_a_part_of_its_samples_always_the_same(after: Callable[..., Trainer]) -> None:
    """With k=1 and lam=1 it knows those for certain."""
    run = after("algorithm.lam=1", "algorithm.k=1", "algorithm.capacity=0.3")
    (predict, outputs, targets), (again, _, _) = predictor(run, 3), predictor(run, 3)
    assert torch.equal(predict(outputs), again(outputs))
    remembered = run.sole_run.facts.draws("knn-per-memory", 3).permutation(len(targets))[: int(0.3 * len(targets))]
    assert torch.equal(predict(outputs)[0, remembered].argmax(-1), targets[remembered])
    assert not torch.equal(predict(outputs)[0].argmax(-1), targets)


def test_a_clients_model_predicts_so_when_it_is_taken_out(after: Callable[..., Trainer]) -> None:
    run = after("algorithm.lam=0|1", "algorithm.k=1")
    predict, outputs, _ = predictor(run, 4)
    inputs = run.split.train.plain(torch.from_numpy(run.sole_run.shards[4]))
    for choice in range(2):
        assert_exact(run.client_module(4, choice)(inputs), predict(outputs)[choice])


def test_the_best_k_and_lam_on_validation_samples_are_taken(after: Callable[..., Trainer]) -> None:
    """The figures of several are those of the best alone."""
    figures = after("algorithm.k=1|8", "algorithm.lam=0.2|0.9").evaluate()[0]
    alone = {}
    for k in (1, 8):
        for lam in (0.2, 0.9):
            alone[k, lam] = after(f"algorithm.k={k}", f"algorithm.lam={lam}").evaluate()[0]
    best = max(alone, key=lambda pair: float(alone[pair]["personal/val/acc"] or 0))
    assert (figures["personal/choice/k"], figures["personal/choice/lam"]) == best
    assert {name: value for name, value in figures.items() if "choice" not in name} == alone[best]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("algorithm.k=1|a", r"algorithm\.k=1\|a: give one of whole numbers, or several separated by \|"),
        ("algorithm.k=0", r"algorithm\.k=0: at least 1 neighbour is needed"),
        ("algorithm.lam=0.5|1.2", r"algorithm\.lam=0\.5\|1\.2: choose weights from 0 to 1"),
        ("algorithm.scale=0", r"algorithm\.scale=0\.0: must be above 0"),
        ("algorithm.capacity=0", r"algorithm\.capacity=0\.0: is a part of a client's samples"),
    ],
)
def test_what_does_not_fit_is_refused(words: str, line: str) -> None:
    with pytest.raises(UserError, match=line):
        experiment("algorithm=knn_per", words)


def test_texts_with_a_target_at_every_position_are_refused(tmp_path: Path) -> None:
    write_shakespeare(tmp_path)
    with pytest.raises(UserError, match=r"algorithm=knn_per: compares samples of one target each.*choose dataset=shakespeare, or images"):
        experiment("algorithm=knn_per", "dataset=shakespeare_sequences", "model=lstm", f"data={tmp_path}")


@pytest.mark.parametrize(("capacity", "remembered"), [(1.0, 12), (0.5, 6), (0.01, 0)])
def test_more_neighbours_than_a_client_remembers_are_refused(capacity: float, remembered: int) -> None:
    line = rf"algorithm\.k=20: client \d+ remembers {remembered} samples \(algorithm\.capacity={capacity} of its 12\); choose fewer"
    with pytest.raises(UserError, match=line):
        trainer("algorithm=knn_per", "algorithm.k=20", f"algorithm.capacity={capacity}", "K=100", "C=0.1")
