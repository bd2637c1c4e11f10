"""Schemes in training: what they are shown, what asking costs, and that runs go on and pack exactly."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

from fl_hydra.errors import UserError
from fl_hydra.participation.base import Cohort, participations
from fl_hydra.resolving import resolve
from fl_hydra.runs.packing import shape
from fl_hydra.sharding.base import Shards
from fl_hydra.training.planning import plan_round
from fl_hydra.training.trainer import Trainer
from tests.support.capture import under_guard
from tests.support.cohorts import SMALL, Uneven, chosen, made, module_losses
from tests.support.make import config, experiment, trainer


def test_losses_are_those_of_the_present_model_on_own_samples() -> None:
    run = made("dataset.flip=true", "dataset.crop=2")
    run.run_round()
    ids = np.array([1, 4, 7])
    expected = [losses.mean() for losses in module_losses(run, run.state.model[0], ids.tolist())]
    assert run.questions.answer(run.member, run.state.model[0], ids, None) == pytest.approx(expected, rel=1e-12)
    some = run.member.loss_samples(ids, 5)
    assert [len(own) for own in some] == [5, 5, 5]
    assert all(set(own.tolist()) <= set(run.member.shards[k].tolist()) for k, own in zip(ids.tolist(), some, strict=True))
    assert [own.tolist() for own in some] == [own.tolist() for own in run.member.loss_samples(ids, 5)]
    run.run_round()
    assert [own.tolist() for own in some] != [own.tolist() for own in run.member.loss_samples(ids, 5)]


@pytest.mark.parametrize("engine", ["loop", "stacked"])
def test_what_a_round_shows(engine: str) -> None:
    """With one step on whole shards, the losses are those of the first model on all samples."""
    for name in ("oort", "afl"):
        run = made(f"participation={name}", "J=1", "batch_size=8", "dataset.crop=0", engine=engine)
        member = run.member
        only = Cohort(np.array([0, 1]), remember={"loss": np.zeros(8)})
        member.experiment.participation.cohort = lambda _, only=only: only  # type: ignore
        model = run.state.model[0].clone()
        run.run_round()
        (losses,) = module_losses(run, model, [0])
        if name == "oort":
            assert member.scheme_state["utility"][0] == pytest.approx(8 * np.sqrt((losses**2).mean()), rel=1e-12)
            assert member.scheme_state["last"][:2].tolist() == [1, 1]
        else:
            assert member.scheme_state["loss"][0] == pytest.approx(losses.mean(), rel=1e-12)


def test_asking_for_losses_is_charged() -> None:
    """Six candidates for three places: six models down instead of three, and a forward pass over the candidates' samples."""
    plain, run = made("C=0.375"), made("C=0.375", "participation=power_of_choice", "participation.d=6")
    payload = run.group.layout.size * 8
    for each in (plain, run):
        each.run_round()
    assert plain.member.traffic.bytes_down == 3 * payload
    assert run.member.traffic.bytes_down == 6 * payload
    assert run.member.traffic.bytes_up == plain.member.traffic.bytes_up == 3 * payload
    assert run.member.traffic.messages == plain.member.traffic.messages + 3
    (row,), (other,) = run.evaluate(), plain.evaluate()
    assert other["flops"] == run.group.sample_flops * 3 * 2 * 4
    assert row["flops"] == other["flops"] + run.group.forward_flops * run.member.evaluated
    assert run.group.sample_flops / 3 <= run.group.forward_flops < run.group.sample_flops / 1.9
    assert 8 * (1 + 2 + 3 + 5 + 6 + 7) <= run.member.evaluated <= 8 * (2 + 3 + 5 + 6 + 7 + 8)
    few = made("participation=power_of_choice", "C=0.375", "participation.d=6", "participation.samples=10")
    few.run_round()
    assert few.member.evaluated in (6 * 10, 5 * 10 + 8)
    assert few.member.seconds > plain.member.seconds


def test_fedcor_and_afl_ask_when_they_should() -> None:
    run = made("participation=fedcor", "participation.warmup=1", "participation.interval=3")
    payload, total = run.group.layout.size * 8, int(run.member.shard_sizes.sum())
    evaluated, down = [], []
    for _ in range(6):
        run.run_round()
        evaluated.append(run.member.evaluated // total)
        down.append(run.member.traffic.bytes_down // payload)
    assert evaluated == [1, 2, 2, 2, 3, 4], "rounds 0 and 1, and 4 and 5"
    assert np.diff([0, *down]).tolist() == [7, 7, 4, 4, 7, 7], "seven clients have samples, and four take part"
    afl = made("participation=afl")
    for _ in range(3):
        afl.run_round()
    assert afl.member.evaluated == total
    assert afl.member.traffic.bytes_down == (7 + 4 + 4) * payload


@pytest.mark.parametrize("name", list(participations))
def test_a_run_goes_on_exactly(name: str) -> None:
    overrides = (*chosen(name), "participation.dropout=0.2")
    whole, first, second = (made(*overrides) for _ in range(3))
    for _ in range(9):
        whole.run_round()
    for _ in range(4):
        first.run_round()
    second.restore(first.checkpoint())
    for _ in range(5):
        second.run_round()
    assert torch.equal(whole.state.model, second.state.model)
    assert whole.evaluate()[0].keys() == second.evaluate()[0].keys()
    assert (whole.member.traffic, whole.member.evaluated, whole.member.seconds) == (
        second.member.traffic,
        second.member.evaluated,
        second.member.seconds,
    )


@pytest.mark.parametrize("name", list(participations))
def test_packed_runs_choose_as_they_do_alone(name: str) -> None:
    settings = [(*SMALL, *chosen(name), "participation.dropout=0.3", f"seed={seed}") for seed in (0, 1, 2)]
    assert len({shape(config(*s), resolve(config(*s))) for s in settings}) == 1
    for engine, rows in (("loop", None), ("stacked", 3)):
        together = Trainer(*(experiment(*s) for s in settings), engine=engine, rows_at_once=rows)
        for _ in range(4):
            together.run_round()
        for run, s in enumerate(settings):
            alone = Trainer(experiment(*s), engine=engine, rows_at_once=rows)
            for _ in range(4):
                alone.run_round()
            assert torch.equal(together.state.model[run], alone.state.model[0])
            assert together.members[run].traffic == alone.member.traffic
            assert together.members[run].evaluated == alone.member.evaluated


def test_schemes_that_measure_unlike_things_are_not_packed() -> None:
    shapes = {shape(config(*s), resolve(config(*s))) for s in ((*SMALL, *chosen(name)) for name in ("uniform", "skewed", "oort", "afl"))}
    assert len(shapes) == 3


@pytest.mark.parametrize("name", ["all", "uniform", "skewed", "cyclic", "diurnal"])
@pytest.mark.parametrize("engine", ["loop", "stacked"])
def test_schemes_that_measure_nothing_read_nothing_back(name: str, engine: str) -> None:
    run = made(*chosen(name), "participation.dropout=0.3", engine=engine)
    assert not run.measurements.of_clients
    for _ in range(3):
        under_guard(run)


def test_unequal_work_of_clients_spends_the_budget() -> None:
    command = ("algorithm=fedavg", "K=20", "C=0.2", "local_steps.spread=0.5", "epochs=1")
    run = trainer(*command, "model.filters=1", "model.hidden=2", engine="stacked")
    lengths = set()
    while not run.finished:
        plan = plan_round(run.member)
        lengths |= set(plan.samples.tolist())
        run.run_round()
    assert run.member.samples == run.member.experiment.budget
    assert len(lengths) > 2


def test_clients_without_samples_cannot_fill_a_cohort() -> None:
    e = experiment(*SMALL, "C=0.9", sharding=Uneven())
    e = replace(e, m=7)
    Trainer(e, engine="stacked").run_round()

    @dataclass
    class Half(Uneven):
        def shards(self, population: Any, K: int, N_c: int | None, seed: int) -> Shards:
            return Shards.from_sizes(np.arange(8), np.array([2, 2, 2, 2, 0, 0, 0, 0]))

    with pytest.raises(UserError, match=r"4 of 8 clients have samples, and 7 are needed; choose at most C=0.5"):
        Trainer(replace(e, sharding=Half()), engine="stacked")
