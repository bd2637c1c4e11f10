"""SWA of the server's models: which are averaged, at which rates clients train, and that it is exact to resume and to pack."""

from __future__ import annotations

import pytest
import torch

from fl_hydra.algorithms.base import State
from fl_hydra.errors import UserError
from fl_hydra.resolving import notes
from fl_hydra.runs.identity import describe, run_hash
from fl_hydra.runs.packing import shape
from fl_hydra.training.averages import SWA
from fl_hydra.training.trainer import Trainer
from tests.support.make import config, experiment, trainer
from tests.support.packs import assert_same, train
from tests.support.quadratics import Quadratics

SMALL = ("K=10", "C=0.3", "J=3", "precision=fp64", "batch_size=16", "samples=1440")
"""Ten rounds."""


def test_the_models_at_the_ends_of_cycles_are_averaged() -> None:
    """20 rounds: the average begins with the model after 10, and takes in those after 13, 16 and 19; training goes on from the others."""
    made = Quadratics("algorithm=fedavg", "C=1", "J=1", "samples=40", "swa.start=0.5", "swa.cycle=3")
    plain = Quadratics("algorithm=fedavg", "C=1", "J=1", "samples=40").rounds(20)
    for count in range(1, 20):
        assert made.rounds(1) == [plain[count - 1]]
        taken = [plain[at - 1] for at in (10, 13, 16, 19) if at <= count]
        models, _ = made.run._evaluated(made.run.sole_run, made.run.state)
        assert float(models[0, 0]) == pytest.approx(sum(taken) / len(taken) if taken else plain[count - 1], rel=1e-14)
    (last,) = made.rounds(1)
    assert last == pytest.approx((plain[9] + plain[12] + plain[15] + plain[18]) / 4, rel=1e-14), "it is the model that remains"


def test_clients_rates_fall_within_a_cycle() -> None:
    """From lr towards lr2: t = 1/4, 2/4, 3/4, 1 in the rounds of each cycle (Izmailov et al., algorithm 1)."""
    made = Quadratics("algorithm=fedavg", "C=1", "J=1", "samples=40", "swa.start=0.5", "swa.cycle=4", "swa.lr2=0.02")
    seen = []
    while not made.run.finished:
        made.rounds(1)
        seen.append(made.run.sole_run.lr)
    assert seen == pytest.approx([0.1] * 10 + [0.08, 0.06, 0.04, 0.02] * 2 + [0.08, 0.06])
    assert SWA(start=0.5, cycle=1, lr2=0.01).factor(7, 0.1) == pytest.approx(0.1)


CLIENTS, WORKERS = ("K=10", "C=0.3", "J=3"), ("K=3", "J=4")


@pytest.mark.parametrize(
    ("algorithm", "more"),
    [
        ("fedavg", CLIENTS),
        ("fedexp", CLIENTS),
        ("scaffold", (*CLIENTS, "server=fedadam")),
        ("fedper", (*CLIENTS, "algorithm.personal_layers=none")),
        ("gossip", ("K=3",)),
        ("async_sgd", WORKERS),
    ],
)
def test_it_goes_on_exactly_from_a_checkpoint(algorithm: str, more: tuple[str, ...]) -> None:
    words = (f"algorithm={algorithm}", *more, "optimizer=sgd", "batch_size=16", "samples=1440", "swa.start=0.4", "swa.cycle=2")
    whole, half = trainer(*words), trainer(*words)
    while not whole.finished:
        whole.run_round()
        if whole.sole_run.averaged == 1:
            saved = whole.checkpoint()
    assert saved["averaged"] == 1
    half.restore(saved)
    while not half.finished:
        half.run_round()
    assert torch.equal(whole.state.model, half.state.model)
    assert whole.evaluate() == half.evaluate()


def test_runs_that_average_at_other_times_train_together() -> None:
    settings = [
        ("algorithm=fedavg", *SMALL, *own)
        for own in (("swa.start=0.2", "swa.cycle=2"), ("swa.start=0.6", "swa.lr2=0.001", "swa.cycle=3"), ("swa.start=0",))
    ]
    assert (
        len({shape(config(*s), experiment(*s)) for s in settings})
        == 1
        != len({shape(config(*s), experiment(*s)) for s in (settings[0], settings[0][:-2])})
    )
    together = train(Trainer(*(experiment(*s) for s in settings), engine="stacked"))
    for one, s in zip(together, settings, strict=True):
        (alone,) = train(trainer(*s, engine="stacked"))
        assert_same(one, alone)


def test_running_statistics_are_averaged_too() -> None:
    state = State(torch.zeros(1, 2), buffers={"model": torch.ones(1, 3), "swa": torch.zeros(1, 2), "swa_statistics": torch.zeros(1, 3)})
    swa = SWA(start=0.5, cycle=1)
    assert swa.follow(None, 0.4, state, state.model) is None and not state.buffers["swa_statistics"].any()
    rounds = swa.follow(None, 0.5, state, state.model)
    state.model.fill_(2)
    state.buffers["model"].fill_(5)
    assert swa.follow(rounds, 0.6, state, state.model) == 1
    assert state.buffers["swa"].unique().tolist() == [1] and state.buffers["swa_statistics"].unique().tolist() == [3]


def test_without_it_a_run_keeps_its_name() -> None:
    off = experiment("algorithm=fedavg")
    assert run_hash(off) == run_hash(experiment("algorithm=fedavg", "swa.cycle=3", "swa.start=null"))
    assert "swa" not in describe(off)
    assert describe(experiment("algorithm=fedavg", "swa.start=0.75"))["swa"] == {"start": 0.75, "cycle": 10, "lr2": None}
    assert "swa.cycle and swa.lr2 have no effect without swa.start" in notes(config("algorithm=fedavg", "swa.cycle=3"))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("fedavg swa.start=1", "swa.start=1.0: a fraction of the budget"),
        ("fedavg swa.start=0.5 swa.cycle=0", "swa.cycle=0: at least 1 round"),
        ("fedavg swa.start=0.5 swa.lr2=0", "swa.lr2=0.0: the learning rate must be greater than 0"),
        ("fedavg swa.start=0.5 swa.lr2=0.001 scheduler=cosine", "swa.lr2=0.001: rates fall to it within each cycle, and scheduler=cosine"),
        ("fedper swa.start=0.5", "swa.start=0.5: averages the server's models, and algorithm=fedper has none"),
    ],
)
def test_what_cannot_be_is_refused(words: str, line: str) -> None:
    with pytest.raises(UserError, match=line):
        experiment(*f"algorithm={words}".split())
