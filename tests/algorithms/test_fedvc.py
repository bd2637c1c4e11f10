"""FedVC: clients of any size take part as virtual clients of one size."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from fl_hydra.errors import UserError
from fl_hydra.participation.by_size import BySize
from fl_hydra.participation.importance import inclusion, systematic
from fl_hydra.runs.identity import run_hash
from fl_hydra.sharding.base import Sharding, Shards
from fl_hydra.training.planning import plan_round
from tests.support.cohorts import counts
from tests.support.make import experiment, trainer

SMALL = ("K=8", "C=0.5", "precision=fp64", "batch_size=16", "samples=300")


@dataclass
class Sized(Sharding):
    """Clients of these sizes."""

    name: str = "iid"
    sizes: tuple[int, ...] = (32,) * 8

    def shards(self, sample_owners: Any, K: int, N_c: int | None, seed: int) -> Shards:
        order = np.random.default_rng(seed).permutation(sample_owners.total)[: sum(self.sizes)]
        return Shards.from_sizes(order, np.array(self.sizes))


def test_of_clients_of_the_virtual_size_it_is_fedavg() -> None:
    """Which takes one pass a round; the last round is cut."""
    one = trainer("algorithm=fedavg", "J=2", *SMALL, sharding=Sized())
    other = trainer("algorithm=fedvc", "algorithm.N_VC=32", *SMALL, sharding=Sized())
    while not one.finished:
        assert plan_round(one.sole_run).ids.tolist() == plan_round(other.sole_run).ids.tolist()
        one.run_round()
        other.run_round()
    assert other.finished and torch.equal(one.state.model, other.state.model)
    assert one.evaluate() == other.evaluate()


def test_large_clients_use_a_part_and_small_ones_their_samples_again() -> None:
    run = trainer("algorithm=fedvc", "algorithm.N_VC=32", *SMALL, sharding=Sized(sizes=(5, 20, 40, 200, 40, 40, 40, 40))).sole_run
    plan = plan_round(run)
    assert plan.samples.tolist() == [32] * 4 and plan.steps == 2
    for client, least, most in ((0, 6, 7), (1, 1, 2), (2, 0, 1), (3, 0, 1)):
        taken = np.bincount(run.sampler.indices(client, 0, 32), minlength=2000)[run.shards[client]]
        assert taken.sum() == 32 and taken.min() >= least and taken.max() <= most
    all_of_it = np.concatenate([run.sampler.indices(3, cursor, 32) for cursor in range(0, 192, 32)])
    assert len(set(all_of_it.tolist())) == 192, "in six rounds"


@pytest.mark.parametrize("sizes", [(5, 20, 40, 35), (10, 70, 15, 5), (1, 1, 1, 97)])
def test_the_mean_is_that_of_all_samples_on_average(sizes: tuple[int, ...]) -> None:
    """By enumeration over the design: of all starting points, those between two borders give one cohort."""
    shares, m = np.array(sizes) / sum(sizes), 2
    chances, found = inclusion(shares, m), np.zeros(4)
    for low, high in itertools.pairwise(np.unique(np.concatenate([[0.0, 1.0], np.cumsum(chances) % 1]))):
        taken = systematic(chances, (low + high) / 2)
        weights = shares[taken] / chances[taken]
        assert weights.sum() == pytest.approx(1) and (chances.max() == 1 or np.ptp(weights) < 1e-12)
        found[taken] += (high - low) * weights
    assert found == pytest.approx(shares, abs=1e-12)


def test_clients_are_drawn_in_proportion_to_their_samples() -> None:
    taken = counts(BySize(), 3, 3000, np.array([10, 20, 30, 40, 50, 0]))
    assert taken / 3000 == pytest.approx(3 * np.array([10, 20, 30, 40, 50, 0]) / 150, abs=0.03)


def test_weights_are_equal() -> None:
    plan = plan_round(trainer("algorithm=fedvc", *SMALL, sharding=Sized(sizes=(30, 20, 40, 50, 40, 40, 40, 60))).sole_run)
    assert plan.weights == pytest.approx([0.25] * 4)


def test_a_virtual_size_is_another_way_to_say_j() -> None:
    one, other = (experiment("algorithm=fedvc", *SMALL, word) for word in ("algorithm.N_VC=48", "J=3"))
    assert one.J == other.J == 3 and run_hash(one) == run_hash(other)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("algorithm.N_VC=0", r"algorithm\.N_VC=0: a virtual client needs at least 1 sample"),
        ("algorithm.N_VC=24", r"algorithm\.N_VC=24: .* steps of batch_size=16 samples; choose 16 or 32"),
        ("algorithm.N_VC=8", r"algorithm\.N_VC=8: .* steps of batch_size=16 samples; choose 16$"),
        ("algorithm.N_VC=32 J=4", "J=4: algorithm=fedvc already takes 2 steps of batch_size=16 in a round; leave J out"),
        ("participation=uniform", "participation=uniform: algorithm=fedvc draws clients by their size; leave participation out"),
        ("local_steps=doubling", "local_steps=doubling: virtual clients of algorithm=fedvc all take the same number of steps"),
        ("local_steps.spread=0.5", r"local_steps\.spread=0\.5: virtual clients .*; leave local_steps\.spread out"),
        ("C=1", "participation=by_size: chooses 8 of 8 clients, which leaves no choice"),
    ],
)
def test_what_it_cannot_go_with(words: str, line: str) -> None:
    with pytest.raises(UserError, match=line):
        experiment("algorithm=fedvc", *SMALL, *words.split())
