"""Clients that no scheme ever draws."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from fl_hydra.errors import UserError
from fl_hydra.participation.base import participations
from fl_hydra.participation.held_out import members, spans, spelled
from fl_hydra.participation.schemes import Uniform, probabilities
from fl_hydra.report.measures import clients_of
from fl_hydra.resolving import resolve
from fl_hydra.runs.identity import describe, run_hash
from tests.support.cohorts import simulate
from tests.support.make import config, experiment, trainer

SMALL = ("K=10", "C=0.3", "J=2", "batch_size=8", "rounds=3", "model.filters=2", "model.hidden=8", "precision=fp64")


@pytest.mark.parametrize(
    ("text", "clients"), [("7", [7]), ("90-92", [90, 91, 92]), ("3|7|90-91", [3, 7, 90, 91]), (" 5 | 2-4|4-6", [2, 3, 4, 5, 6])]
)
def test_names_of_clients(text: str, clients: list[int]) -> None:
    assert members(spans(text)).tolist() == clients


def test_equal_clients_are_equal_runs_and_none_are_as_before() -> None:
    assert spelled(spans("91|90|3|92-95")) == "3|90-95"
    base = ("algorithm=fedavg", "K=20", "C=0.2", "rounds=9")
    one, other = (experiment(*base, f"participation.held_out={text}") for text in ("8-9", "9|8"))
    assert run_hash(one) == run_hash(other) != run_hash(experiment(*base))
    assert "held_out" not in describe(experiment(*base))["participation"]


@pytest.mark.parametrize("text", ["", "a", "9-3", "-3", "3|", "1,2"])
def test_what_names_no_clients_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="names no clients"):
        Uniform(held_out=text)


@pytest.mark.parametrize("name", participations)
def test_no_scheme_draws_them(name: str) -> None:
    """A scheme sees them as clients without samples, whom it never draws; m stays as it is, but where all others take part."""
    scheme = participations[name](held_out="0|15-19")
    sizes = scheme.seen_sizes(np.arange(10, 30))
    assert (sizes == 0).nonzero()[0].tolist() == [0, 15, 16, 17, 18, 19]
    m = 14 if name == "all" else 4
    cohorts = simulate(scheme, m, 25, sizes=sizes)
    assert all(len(cohort.ids) == m and not set(cohort.ids.tolist()) & {0, 15, 16, 17, 18, 19} for cohort in cohorts)


@pytest.mark.parametrize("name", ["uniform", "skewed", "power_of_choice", "oort", "fedcor", "importance", "by_size", "cyclic"])
def test_they_never_train(name: str) -> None:
    gamma = ("gamma=0.5",) if name == "skewed" else ()
    run = trainer("algorithm=fedavg", f"participation={name}", "participation.held_out=2|5-6", *gamma, *SMALL)
    while not run.finished:
        run.run_round()
    cursors = run.sole_run.cursors
    assert not cursors[[2, 5, 6]].any() and np.count_nonzero(cursors) >= 3


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("algorithm=fedavg", "participation.held_out=8-10"), "there are clients 0 to 9"),
        (("algorithm=fedavg", "participation.held_out=0-9"), "all 10 clients are held out"),
        (("algorithm=fedavg", "participation.held_out=2-9"), "2 of 10 clients are left, and 3 take part .* choose at most C=0.2,"),
        (("algorithm=fedavg", "participation.held_out=3", "C=1", "participation=all"), "at most C=0.9 with participation=uniform"),
        (("algorithm=fedavg", "participation.held_out=3-9", "participation=skewed", "gamma=1"), "chooses 3 of 3 clients"),
        (("algorithm=localsgd", "participation.held_out=3", "C=1"), "algorithm=localsgd has workers; leave it out"),
    ],
)
def test_mistakes_are_one_line(words: tuple[str, ...], line: str) -> None:
    with pytest.raises(UserError, match=line) as raised:
        resolve(config(*words, "K=10", *(() if any(word.startswith("C=") for word in words) else ("C=0.3",)), "rounds=2"))
    assert "\n" not in str(raised.value)


def test_sums_over_all_clients_are_over_those_that_may_be_drawn() -> None:
    run = trainer("algorithm=scaffold", "participation.held_out=0-4", "sharding=quantity", *SMALL)
    packed = run.sole_run
    assert packed.facts.drawable == 5 and packed.facts.drawn.tolist() == [False] * 5 + [True] * 5
    part = run.cohorts.uncharged(packed, 0, np.arange(5, 10), run.state)
    assert float(part.shares.sum()) == pytest.approx(1, abs=1e-12), "n is what those hold"
    everyone = run.cohorts.everyone(packed, 0, run.state)
    assert everyone.ids.tolist() == [5, 6, 7, 8, 9] and float(everyone.weights.sum()) == pytest.approx(1, abs=1e-12)
    fractions = trainer("algorithm=fedir", "participation.held_out=0-4", "sharding=classes", "N_c=2", *SMALL)
    counts = fractions.sole_run.facts.label_counts
    assert counts is not None
    sent = fractions.group.architecture.algorithm.send(fractions.state, fractions.cohorts.everyone(fractions.sole_run, 0, fractions.state))
    assert sent["fractions"][0].numpy() == pytest.approx(counts[5:].sum(0) / counts[5:].sum())


def test_privacy_is_of_a_draw_among_the_others() -> None:
    base = ("algorithm=fedavg", "K=20", "C=0.2", "rounds=9")
    known = describe(experiment(*base, "participation.held_out=10-19"))
    assert clients_of(known) == 10 and clients_of(describe(experiment(*base))) == 20


def test_the_others_probabilities_are_those_of_a_draw_among_them() -> None:
    whole, left = (probabilities(0.5, 10, 3, np.array(away, np.int64)) for away in ([], [2, 7]))
    assert whole.sum() == pytest.approx(1) and left.sum() == pytest.approx(1) and not left[[2, 7]].any()
    others = [0, 1, 3, 4, 5, 6, 8, 9]
    assert left[others] / left[0] == pytest.approx(whole[others] / whole[0], rel=1e-12)


def test_statistics_that_stay_with_clients_are_refused() -> None:
    model = ("model=convmixer", "model.width=4", "model.depth=1", "model.patch=4", "model.kernel=3")
    build = partial(trainer, "algorithm=fedbn", *model, "K=10", "C=0.3", "J=2", "batch_size=8", "rounds=3")
    build()
    with pytest.raises(UserError, match="running statistics of BatchNorm stay with clients here"):
        build("participation.held_out=3")
