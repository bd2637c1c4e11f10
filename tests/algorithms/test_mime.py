"""Mime and MimeLite: full-batch gradient descent where clients agree on everything, rules by hand, and what is charged."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from fl_hydra.errors import UserError
from fl_hydra.training.trainer import Trainer
from tests.support.make import experiment, trainer
from tests.support.quadratics import Quadratics

SMALL = ("K=6", "C=0.5", "J=3", "precision=fp64", "optimizer=sgd", "batch_size=16")
DESCENT = ("optimizer.weight_decay=0", "scheduler=constant", "optimizer.lr=0.1")


def finished(run: Trainer) -> Trainer:
    while not run.finished:
        run.run_round()
    return run


def full_gradient(run: Trainer, model: Tensor) -> Tensor:
    """The gradient of the mean loss over all training samples at a model [1, P], by ordinary autograd."""
    layout, samples = run.group.layout, run.split.train
    own = model[0].clone().requires_grad_()
    images = samples.plain(torch.arange(len(samples)))
    logits = functional_call(run.group.architecture.module, layout.whole_views(own), (images,))
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits, samples.targets), own)
    return gradient[None]


@pytest.mark.parametrize("engine", ["loop", "stacked"])
@pytest.mark.parametrize("base", ["momentum", "sgd"])
def test_in_full_rounds_of_a_step_it_is_full_batch_gradient_descent(base: str, engine: str) -> None:
    """Without memory, also where clients have other numbers of samples, and whatever is drawn in a batch."""
    settings = ("K=6", "C=1", "J=1", "sharding=quantity", "precision=fp64", "optimizer=sgd", "batch_size=16", *DESCENT)
    run = trainer("algorithm=mime", f"algorithm.base={base}", "algorithm.beta=0", *settings, "rounds=2", engine=engine)
    model = run.state.model.clone()
    while not run.finished:
        model = model - 0.1 * full_gradient(run, model)
        run.run_round()
        torch.testing.assert_close(run.state.model, model, rtol=0, atol=1e-13)


@pytest.mark.parametrize("engine", ["loop", "stacked"])
def test_mimelite_without_a_memory_is_fedavg(engine: str) -> None:
    settings = (*SMALL, "samples=700")
    one = finished(trainer("algorithm=fedavg", *settings, engine=engine))
    for more in (("algorithm.base=sgd",), ("algorithm.base=momentum", "algorithm.beta=0")):
        other = finished(trainer("algorithm=mimelite", *more, *settings, engine=engine))
        assert torch.equal(one.state.model, other.state.model)


def mimicking(*overrides: str, **clients: Any) -> Quadratics:
    """Quadratics whose passes over all samples are of the quadratics too."""
    made = Quadratics(*overrides, **clients)
    made.run.cohorts.passes.gradient = lambda run, state, ids, models: made.gradient_at(models, ids)  # type: ignore[method-assign]
    return made


@pytest.mark.parametrize("base", ["momentum", "adam"])
def test_mime_reaches_the_optimum_though_clients_take_many_steps(base: str) -> None:
    """sum a_k b_k / sum a_k = 3/4: there c = 0, and g(x) - g(x) = 0. FedAvg comes to 0.688."""
    lr = "0.01" if base == "adam" else "0.1"
    made = mimicking("algorithm=mime", f"algorithm.base={base}", "algorithm.eps=0.1", "C=1", "J=4", f"optimizer.lr={lr}")
    assert made.rounds(250)[-1] == pytest.approx(0.75, abs=1e-5)


def steps_by_hand(base: str, corrected: bool, rounds: int) -> list[float]:
    """Two clients with a = (1, 3), b = (0, 1): J = 2 steps at rate 0.1, beta 0.5, beta2 0.75, eps 0.1, written out."""
    x, m, v, found = 0.5, 0.0, 0.0, []
    for t in range(1, rounds + 1):
        slopes = [lambda w: w, lambda w: 3 * (w - 1)]
        c = sum(slope(x) for slope in slopes) / 2
        ends = []
        for slope in slopes:
            w = x
            for _ in range(2):
                g = slope(w) - slope(x) + c if corrected else slope(w)
                first = 0.5 * g + 0.5 * m
                if base == "momentum":
                    w -= 0.1 * first
                else:
                    second = 0.25 * g * g + 0.75 * v
                    w -= 0.1 * first / (1 - 0.5**t) / (math.sqrt(second / (1 - 0.75**t)) + 0.1)
            ends.append(w)
        m, v, x = 0.5 * c + 0.5 * m, 0.25 * c * c + 0.75 * v, sum(ends) / 2
        found.append(x)
    return found


@pytest.mark.parametrize("base", ["momentum", "adam"])
@pytest.mark.parametrize("algorithm", ["mime", "mimelite"])
def test_four_rounds_on_paper(algorithm: str, base: str) -> None:
    numbers = ("algorithm.beta=0.5", "algorithm.beta2=0.75", "algorithm.eps=0.1")
    made = mimicking(f"algorithm={algorithm}", f"algorithm.base={base}", *numbers, "C=1", "J=2", start=0.5)
    assert made.rounds(4) == pytest.approx(steps_by_hand(base, algorithm == "mime", 4), abs=1e-13)


@pytest.mark.parametrize("algorithm", ["mime", "mimelite"])
def test_statistics_are_of_those_who_report(algorithm: str) -> None:
    """m <- m / 2 + (the mean gradient at x of those who stay, by their samples) / 2, and as it was where nobody stays."""
    sizes = (100, 300, 50, 50)
    made = mimicking(
        f"algorithm={algorithm}",
        "algorithm.beta=0.5",
        "C=0.5",
        "J=2",
        "participation.dropout=0.5",
        a=(1.0, 3.0, 2.0, 5.0),
        b=(0.0, 1.0, -1.0, 2.0),
        sizes=sizes,
    )
    m, unheard = 0.0, 0
    for _ in range(12):
        x, ids = made.run.state.model.clone(), made.ids
        stays = made.run.sole_run.experiment.participation.reports(ids, made.run.sole_run.experiment.seed, made.run.sole_run.round)
        made.run.run_round()
        if stays.any():
            shares = np.array(sizes)[ids] * stays
            slopes = made.gradient_at(x.expand(len(ids), -1), ids)[:, 0].numpy()
            m = m / 2 + float((shares * slopes).sum() / shares.sum()) / 2
        else:
            unheard += 1
            assert torch.equal(made.run.state.model, x)
        assert float(made.run.state.carried["first"][0, 0]) == pytest.approx(m, abs=1e-13)
    assert unheard > 0


def test_what_is_sent_and_computed() -> None:
    """Mime: x, m and c down, the gradient and the model up, in four messages; MimeLite: x and m down, both up, in two."""
    settings = (*SMALL, "rounds=2")
    plain, lite, mime = (finished(trainer(f"algorithm={name}", *settings)) for name in ("fedavg", "mimelite", "mime"))
    one, two, three = (run.sole_run.traffic for run in (plain, lite, mime))
    assert (two.bytes_down, two.bytes_up, two.messages) == (2 * one.bytes_down, 2 * one.bytes_up, one.messages)
    assert (three.bytes_down, three.bytes_up, three.messages) == (3 * one.bytes_down, 2 * one.bytes_up, 2 * one.messages)
    assert (two.averages, three.averages, three.served) == (one.averages, 2 * one.averages, three.messages)
    drawn, passed = plain.sole_run.computed, lite.sole_run.computed - plain.sole_run.computed
    assert passed == pytest.approx(2 * 3 * plain.sole_run.shard_sizes.mean(), abs=6), "of shards that differ by one sample"
    assert mime.sole_run.computed == 2 * drawn + passed
    assert len({run.sole_run.samples for run in (plain, lite, mime)}) == 1, "passes and second gradients cost no samples"
    assert len({run.evaluate()[0]["seconds"] for run in (plain, lite, mime)}) == 3
    sgd = finished(trainer("algorithm=mimelite", "algorithm.base=sgd", *settings))
    assert sgd.sole_run.traffic == one and sgd.sole_run.computed == drawn


def test_passes_are_divided_alike_after_an_interruption() -> None:
    """A run that goes on is told how many samples of a batch it computes at once, which is fewer than of a pass."""
    made = experiment("algorithm=mimelite", *SMALL)
    begun = Trainer(made, engine="stacked")
    resumed = Trainer(made, engine="stacked", rows_at_once=begun.group.rows_at_once, samples_at_once=begun.group.samples_at_once)
    assert resumed.group.engine.samples_at_once == begun.group.engine.samples_at_once > begun.group.samples_at_once


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("algorithm=mime optimizer=sgdm", "choose optimizer=sgd"),
        ("algorithm=mimelite optimizer=adamw", "choose optimizer=sgd"),
        ("algorithm=mime optimizer=sgd uplink=topk", "leave uplink out"),
        ("algorithm=mime optimizer=sgd algorithm.base=lamb", "algorithm.base=lamb: choose from sgd, momentum, adam"),
        ("algorithm=mime optimizer=sgd algorithm.beta=1", "algorithm.beta=1.*below 1"),
        ("algorithm=mime optimizer=sgd algorithm.base=adam algorithm.eps=0", "algorithm.eps=0.*greater than 0"),
    ],
)
def test_what_does_not_go_with_it_is_refused(words: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        experiment(*words.split())


def test_numbers_that_a_rule_does_not_use_name_no_other_run() -> None:
    one, other = (experiment("algorithm=mime", "optimizer=sgd", f"algorithm.eps={eps}").algorithm.identity() for eps in (0.1, 0.2))
    assert one == other
