"""Runs that train together: each is what it is alone, whatever happens to the others."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fl_hydra.algorithms.base import algorithms
from fl_hydra.participation.base import Cohort, Round
from fl_hydra.participation.schemes import Uniform
from fl_hydra.resolving import resolve
from fl_hydra.runs.packing import packs, shape
from fl_hydra.training.trainer import Trainer
from tests.support.engines import KINDS
from tests.support.make import config, experiment, trainer
from tests.support.packs import assert_same, members, train


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "lars", "lamb"])
def test_runs_with_and_without_weight_decay_train_together(optimizer: str) -> None:
    """Which is not multiplying by 0 in one of them: each takes the operations that it takes alone."""
    settings = [(f"optimizer={optimizer}", f"optimizer.weight_decay={value}", "rounds=2", f"seed={value > 0:d}") for value in (0, 0.01)]
    assert len({shape(config(*s), experiment(*s)) for s in settings}) == 1
    together = train(Trainer(*(experiment(*s) for s in settings), engine="loop"))
    for one, other in zip(together, (row for s in settings for row in train(trainer(*s, engine="loop"))), strict=True):
        assert_same(one, other)


@pytest.mark.parametrize(
    ("algorithm", "engine"),
    [*((algorithm, "stacked") for algorithm in algorithms), *((algorithm, "loop") for algorithm in dict(KINDS))],
)
def test_packed_runs_are_the_runs_alone(algorithm: str, engine: str) -> None:
    settings = members(algorithm)
    assert len({shape(config(*s), experiment(*s)) for s in settings}) == 1
    together = train(Trainer(*(experiment(*s) for s in settings), engine=engine))
    alone = [row for s in settings for row in train(trainer(*s, engine=engine))]
    for one in alone:
        (other,) = [row for row in together if (row["seed"], row["samples"], row["lr"]) == (one["seed"], one["samples"], one["lr"])]
        assert_same(other, one)


PARTICULAR: dict[str, tuple[str, ...]] = {
    "norms along rows": ("optimizer=lamb", "optimizer.clip=1"),
    "an outer optimizer": ("server=adam",),
    "low precision": ("precision=bf16",),
    "rows of different lengths": ("local_steps.spread=0.5",),
    "losses of rows": ("local_steps=loss",),
    "the noise scale": ("noise_scale=true",),
    "blocks of rows": (),
}
"""Where numbers of several runs might meet."""


@pytest.mark.parametrize(
    ("where", "engine", "threads"),
    [
        *((where, "stacked", 1) for where in PARTICULAR),
        *((where, "loop", 2) for where in ("rows of different lengths", "the noise scale", "blocks of rows")),  # rows meet in sums alone
    ],
)
def test_no_bit_of_a_run_depends_on_the_others(where: str, engine: str, threads: int) -> None:
    """Neither on who they are nor on how many, from round to round. Two threads share a run's rows."""
    settings = [(*s, *PARTICULAR[where]) for s in members("localsgd")]
    rows = 2 if where == "blocks of rows" else None
    torch.set_num_threads(threads)
    try:
        together = train(Trainer(*(experiment(*s) for s in settings), engine=engine, rows_at_once=rows))
        alone = [row for s in settings for row in train(Trainer(experiment(*s), engine=engine, rows_at_once=rows))]
    finally:
        torch.set_num_threads(1)
    for one, other in zip(sorted(together, key=_key), sorted(alone, key=_key), strict=True):
        assert_same(one, other)


def _key(row: dict[str, Any]) -> tuple[float, ...]:
    return row["seed"], row["samples"], row["lr"]


def test_clients_that_choose_and_drop_out_do_so_alone() -> None:
    settings = [(*s, "participation=oort", "participation.dropout=0.4", "server=slowmo") for s in members("fedavg")]
    together = train(Trainer(*(experiment(*s) for s in settings), engine="stacked"))
    alone = [row for s in settings for row in train(trainer(*s, engine="stacked"))]
    for one, other in zip(sorted(together, key=_key), sorted(alone, key=_key), strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("engine", ["loop", "stacked"])
def test_a_diverging_member_spoils_no_other(engine: str) -> None:
    settings = members("localsgd")
    run = Trainer(*(experiment(*s) for s in (settings[0], (*settings[1], "optimizer.lr=1e30"), settings[2])), engine=engine)
    for _ in range(2):
        run.run_round()
    assert not run.state.model[1].isfinite().all()
    run.retain_runs([0, 2])
    rows = train(run)
    for row, s in zip(rows, (settings[2], settings[0]), strict=True):  # the third has the smaller budget
        assert_same(row, train(trainer(*s, engine=engine))[0])


def test_a_member_may_come_from_elsewhere_and_go_on_alone(tmp_path: Path) -> None:
    """A run begun alone goes on inside a pack, whose other members begin, and then alone again; its workers' momentum goes with it."""
    settings = members("localsgd")[:2]
    folders = [tmp_path / "0", tmp_path / "1"]

    def alone(position: int) -> Trainer:
        return Trainer(experiment(*settings[position]), engine="stacked", client_folders=folders[position : position + 1])

    first = alone(0)
    first.run_round()
    first.run_round()
    together = Trainer(*(experiment(*s) for s in settings), engine="stacked", client_folders=folders)
    together.restore(first.checkpoint(), 0)
    together.run_round()
    for position, rounds in ((0, 3), (1, 1)):
        last = alone(position)
        last.restore(together.checkpoint(position))
        assert last.sole_run.round == rounds
        assert_same(train(last)[0], train(trainer(*settings[position], engine="stacked"))[0])


@pytest.mark.parametrize(
    "different",
    ["J=5", "batch_size=8", "C=0.5", "precision=bf16", "split_seed=1", "optimizer.nesterov=true", "optimizer.momentum=0", "model.hidden=8"],
)
def test_what_changes_shapes_is_not_packed(different: str) -> None:
    one = config("algorithm=fedavg", "optimizer=sgdm", "K=12", "C=0.25")
    other = config("algorithm=fedavg", "optimizer=sgdm", "K=12", "C=0.25", different)
    assert shape(one, resolve(one)) != shape(other, resolve(other))


def test_packs_are_as_large_as_allowed_and_in_order() -> None:
    assert packs(["a", "b", "a", "c", "a", "b"], most=2) == [[0, 2], [1, 5], [3], [4]]


def test_a_checkpoint_in_memory_does_not_go_on_with_the_run() -> None:
    settings = members("fedavg", "precision=fp64")[0]
    run = trainer(*settings)
    run.run_round()
    kept = run.checkpoint()
    whole = train(run)[0]
    again = trainer(*settings)
    again.restore(kept)
    assert_same(train(again)[0], whole)


@dataclass
class Growing(Uniform):
    """Cohorts of two and four clients in turn."""

    def cohort(self, round: Round) -> Cohort:
        return Cohort(super().cohort(round).ids[: (2, 4)[round.round % 2]])


def test_clients_keep_what_is_theirs_when_cohorts_grow() -> None:
    """The rows of one run are then where those of another have been, whose clients' state is put away before."""
    settings = ("algorithm=fedper", "K=8", "C=0.5", "J=2", "samples=600", "batch_size=16")
    each = [replace(experiment(*settings), seed=seed, participation=Growing()) for seed in (0, 1)]
    together, alone = Trainer(*each, engine="loop"), [Trainer(one, engine="loop") for one in each]
    for _ in range(5):
        for run in (together, *alone):
            run.run_round()
    for index, run in enumerate(alone):
        heads = [packed.clients.read(np.arange(8), "personal") for packed in (together.runs[index], run.sole_run)]
        assert torch.equal(heads[0], heads[1])
