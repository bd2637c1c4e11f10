"""Cohorts of participation schemes: drawn alone, simulated over rounds, and in training with clients of unequal sizes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from fl_hydra.participation.base import Cohort, Participation, Round, participations
from fl_hydra.sharding.base import Sharding, Shards
from fl_hydra.training.trainer import Trainer
from tests.support.make import trainer

ONES = np.ones(20, np.int64)


def draw(scheme: Participation, m: int, seed: int = 0, round: int = 0, sizes: np.ndarray = ONES, gamma: float | None = None) -> list[int]:
    ids = scheme.cohort(Round(sizes, m, seed, round, gamma)).ids
    assert ids.dtype == np.int64
    return [int(client) for client in ids]


def counts(scheme: Participation, m: int, rounds: int, sizes: np.ndarray = ONES, gamma: float | None = None) -> np.ndarray:
    taken = np.zeros(len(sizes))
    for round in range(rounds):
        taken[draw(scheme, m, 0, round, sizes, gamma)] += 1
    return taken


def successive(p: np.ndarray, m: int) -> np.ndarray:
    """How likely each client is among m successive draws without replacement, by enumeration."""
    chances = np.zeros(len(p))
    for order in itertools.permutations(range(len(p)), m):
        left, chance = 1.0, 1.0
        for client in order:
            chance *= p[client] / left
            left -= p[client]
        chances[list(order)] += chance
    return chances


def _answer(losses: np.ndarray, ids: np.ndarray, samples: int | None) -> Any:
    return losses[ids]


def simulate(
    scheme: Participation,
    m: int,
    rounds: int,
    *,
    sizes: np.ndarray = ONES,
    seed: int = 0,
    loss: Callable[[int], np.ndarray] | None = None,
    gamma: float | None = 0.5,
    seconds: np.ndarray | None = None,
) -> list[Cohort]:
    """The cohorts of some rounds, of clients whose losses, and all else that is measured, are `loss(round)`, float64 [K]."""
    K = len(sizes)
    of_round = loss or (lambda round: np.random.default_rng([seed, round]).random(K) + 0.1)
    memory: dict[str, Any] = {}
    cohorts = []
    for round in range(rounds):
        losses = of_round(round)
        took = np.ones(K) if seconds is None else seconds
        seen = Round(sizes, m, seed, round, gamma, took, memory, partial(_answer, losses))
        cohort = scheme.cohort(seen)
        again = scheme.cohort(seen)
        assert cohort.ids.tolist() == again.ids.tolist(), "a function of (seed, round, memory)"
        memory = {**memory, **cohort.remember}
        stats = dict.fromkeys(scheme.measures, losses[cohort.ids])
        memory = {**memory, **scheme.observe(replace(seen, memory=memory), cohort.ids, stats)}
        assert all(values.dtype == np.float64 and values.shape[-1] == K for values in memory.values())
        cohorts.append(cohort)
    return cohorts


def scheme(name: str, **fields: Any) -> Participation:
    fields = {"warmup": 2, "interval": 3, **fields} if name == "fedcor" else fields
    return participations[name](**fields)


def assert_uniform(cohorts: Sequence[Cohort], K: int) -> None:
    taken = np.bincount(np.concatenate([cohort.ids for cohort in cohorts]), minlength=K)
    assert np.abs(taken - taken.sum() / K).max() < 5 * np.sqrt(taken.sum() / K)


SMALL = ("algorithm=fedavg", "K=8", "C=0.5", "J=2", "batch_size=4", "precision=fp64", "model.filters=1", "model.hidden=2", "rounds=12")


@dataclass
class Uneven(Sharding):
    """Clients of 8, 16, 24, ... samples, the fourth without any."""

    name: str = "iid"

    def shards(self, population: Any, K: int, N_c: int | None, seed: int) -> Shards:
        sizes = 8 * np.arange(1, K + 1)
        sizes[3] = 0
        order = np.random.default_rng(seed).permutation(population.total)[: sizes.sum()]
        return Shards.from_sizes(order, sizes)


def made(*overrides: str, engine: str = "stacked", **parts: Any) -> Trainer:
    return trainer(*SMALL, *overrides, engine=engine, **{"sharding": Uneven(), **parts})


def module_losses(run: Trainer, model: Tensor, ids: Sequence[int]) -> list[np.ndarray]:
    """The losses of all samples of some clients, through the module itself."""
    module = run.group.architecture.build().double()
    found = []
    for client in ids:
        own = torch.from_numpy(run.member.shards[client])
        with torch.no_grad():
            logits = functional_call(module, run.group.layout.views(model), (run.split.train.plain(own),))
            found.append(F.cross_entropy(logits, run.split.train.targets[own], reduction="none").numpy())
    return found


def single_ends(run: Trainer, ids: Sequence[int]) -> Tensor:
    """Where each of some clients ends the first round, [n, P]: each trained alone."""
    ends = []
    for k in ids:
        alone = made(engine="loop")
        alone.member.experiment.participation.cohort = lambda _, k=k: Cohort(np.array([k]))  # type: ignore
        alone.run_round()
        ends.append(alone.state.model[0])
    return torch.stack(ends)


SCHEMES = {
    "all": ["C=1"],
    "skewed": ["gamma=0.5"],
    "fedcor": ["participation.warmup=2", "participation.interval=2"],
    "oort": ["speeds=linear"],
}


def chosen(name: str) -> list[str]:
    return [f"participation={name}", *SCHEMES.get(name, [])]
