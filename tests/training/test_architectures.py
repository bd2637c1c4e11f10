"""Clients of several architectures in one run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from fl_hydra.algorithms.base import Algorithm, Returned, State
from fl_hydra.models.small import Small
from fl_hydra.runs.weights import parts_of
from fl_hydra.seams.clients import Clients, Facts
from fl_hydra.training.experiment import Experiment
from fl_hydra.training.trainer import Trainer
from tests.support.make import experiment


@dataclass
class Halves(Algorithm):
    """Clients begin halfway between their last end and the mean of the last round's ends, of all with as many parameters."""

    name: str = "halves"
    mixes: ClassVar[bool] = True
    needs_ends: ClassVar[bool] = True
    own_starts: ClassVar[bool] = True
    ends_with_mean: ClassVar[bool] = False

    @property
    def global_model(self) -> bool:
        return False

    def client_state(self, models: Tensor, facts: Facts) -> dict[str, Tensor]:
        return {"model": models.clone()}

    def start(self, state: State, clients: Clients) -> Tensor:
        return (clients.receive(state.model) + clients.state["model"]) / 2

    def combine(self, returned: Sequence[Returned]) -> None:
        for width in {each.ends.shape[1] for each in returned}:
            groups = [each for each in returned if each.ends.shape[1] == width]
            for each in groups:
                each.clients.fabric.count_up(each.ends)
                each.clients.state["model"].copy_(each.ends)
            sent = [
                (client, weight, end)
                for each in groups
                for client, weight, end in zip(each.clients.ids.tolist(), each.clients.weights, each.ends, strict=True)
            ]
            total = sum(float(weight) for _, weight, _ in sent)
            if not total:
                continue
            mean = torch.zeros_like(sent[0][2])
            for _, weight, end in sorted(sent, key=lambda row: int(row[0])):
                mean.addcmul_(end, weight / total)
            for each in groups:
                each.state.model[0].copy_(mean)

    def personal_models(self, state: State, clients: Clients) -> Tensor:
        return clients.state["model"].clone()


SETTING = (
    "algorithm=fedavg",
    "K=9",
    "C=0.34",
    "J=3",
    "batch_size=16",
    "samples=500",
    "optimizer=sgdm",
    "sharding=dirichlet",
    "participation.dropout=0.3",
)


def mixed(*models: Any, more: Sequence[str] = ()) -> Experiment:
    """A run of clients with these models in turn. Its last round is cut, and groups of rows differ in size from round to round."""
    return replace(experiment(*SETTING, *more), algorithm=Halves(), architectures=models, model=models[0])


def finish(run: Trainer) -> list[dict[str, Any]]:
    rows = []
    while not run.finished:
        run.run_round()
        rows += run.evaluate()
    return rows


@pytest.mark.parametrize("scheme", ["uniform", "oort"])
def test_two_groups_of_one_architecture_are_one_group(scheme: str) -> None:
    """Bit by bit, in rounds in which a group has no client, too; also where a scheme learns from what clients measure."""
    more = [f"participation={scheme}"]
    one, two = (Trainer(mixed(*models, more=more), engine="loop") for models in ((Small(),), (Small(), Small())))
    sizes = set()
    while not one.finished:
        one.run_round()
        two.run_round()
        sizes.add(tuple(group.rows.division.counts[0] for group in two.groups))
        assert torch.equal(one.state.model, two.groups[0].state.model) and torch.equal(one.state.model, two.groups[1].state.model)
    kept = one.sole_run.clients.read(np.arange(9), "state.model")
    for number, members in enumerate(two.sole_run.members):
        own = np.arange(number, 9, 2)
        assert torch.equal(members.clients.read(own, "state.model"), kept[own])
    (first,), (second,) = one.evaluate(), two.evaluate()
    assert first.keys() == second.keys()
    assert {key: value for key, value in first.items() if not key.startswith("personal") and key != "train/loss"} == {
        key: value for key, value in second.items() if not key.startswith("personal") and key != "train/loss"
    }
    assert all(first[key] == second[key] or first[key] == pytest.approx(second[key], rel=1e-6) for key in first)
    assert len(sizes) > 1 and (scheme == "oort" or any(0 in each for each in sizes))


def test_what_each_architecture_costs_is_counted() -> None:
    run = Trainer(mixed(Small(filters=4, hidden=16), Small()), engine="loop")
    run.run_round()
    (row,) = run.evaluate()
    lenet, small = (group.rows for group in run.groups)
    counted = [members.computed for members in run.sole_run.members]
    assert min(counted) > 0 and sum(counted) == run.sole_run.samples
    assert row["flops"] == lenet.sample_flops * counted[0] + small.sample_flops * counted[1]
    cohort = [len(part) for part in (run.groups[0].rows.division.sections, run.groups[1].rows.division.sections)]
    assert cohort == [1, 1]
    counts = [group.rows.division.counts[0] for group in run.groups]
    assert row["bytes_down"] == counts[0] * lenet.payload + counts[1] * small.payload
    assert row["averages"] == 1 and row["messages"] <= 2 * sum(counts)


@pytest.mark.parametrize("engine", ["loop", "stacked"])
def test_a_resumed_run_is_the_run(tmp_path: Path, engine: str) -> None:
    made = mixed(Small(filters=4, hidden=16), Small())

    def begin() -> Trainer:
        return Trainer(made, engine=engine, client_folders=[tmp_path], state_on="disk")

    whole = Trainer(made, engine=engine)
    rows = finish(whole)
    last, saved = begin(), dict[str, Any]()
    for round in range(whole.sole_run.round):
        if round:
            last.restore(saved)
        last.run_round()
        (row,) = last.evaluate()
        assert row == rows[round]
        saved = last.checkpoint()
        last.sole_run.collect_files([saved["clients"]])
        last = begin()
    last.restore(saved)
    assert parts_of(last, 0) == parts_of(whole, 0)


@pytest.mark.parametrize("engine", ["loop", "stacked"])
def test_packed_runs_are_the_runs_alone(engine: str) -> None:
    each = [
        mixed(Small(filters=4, hidden=16), Small(), more=[f"seed={seed}", f"samples={samples}"])
        for seed, samples in ((0, 400), (1, 500), (2, 400))
    ]
    alone = [finish(Trainer(one, engine=engine))[-1] for one in each]
    run, ended = Trainer(*each, engine=engine), {}
    while run.runs:
        run.run_round()
        for index, packed in enumerate(run.runs):
            (row,) = run.evaluate([index])
            if packed.finished:
                ended[packed.experiment.seed] = row
        left = [index for index, packed in enumerate(run.runs) if not packed.finished]
        if not left:
            break
        if len(left) < len(run.runs):
            run.retain_runs(left)
    for seed, row in enumerate(alone):
        # Training figures are means since the last line, of which the pack has written as many.
        assert ended[seed] == row
