"""Clients alone, and methods that leave the representation or the head where it is: Local, LG-FedAvg, FedBABU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fl_hydra.algorithms.fedbabu import FedBABU
from fl_hydra.errors import UserError
from tests.support.layers import Layered
from tests.support.make import experiment, trainer
from tests.support.personal import SMALL, Coupled, assert_same, finished, own
from tests.support.quadratics import Quadratics


def test_alone_every_client_descends_its_own_loss() -> None:
    """f_k = a_k (x - b_k)^2 / 2 from anywhere: in each step x - b_k becomes 1 - 0.1 a_k times as large."""
    made = Quadratics("algorithm=local", "C=1", "J=3")
    made.run.run_round()
    made.run.run_round()
    start = own(Quadratics("algorithm=local", "C=1", "J=3").run)
    expected = torch.stack([start[0] * 0.9**6, 1 + (start[1] - 1) * 0.7**6])
    torch.testing.assert_close(own(made.run), expected, rtol=1e-12, atol=1e-12)


def test_alone_nothing_is_sent() -> None:
    local, fedper = finished("algorithm=local", *SMALL), finished("algorithm=fedper", "algorithm.personal_layers=all", *SMALL)
    assert torch.equal(own(local), own(fedper)) and torch.equal(local.state.model, fedper.state.model)
    traffic = local.sole_run.traffic
    assert [traffic.bytes_up, traffic.bytes_down, traffic.messages, traffic.averages, traffic.served] == [0] * 5
    assert traffic.steps == fedper.sole_run.traffic.steps
    line = local.evaluate()[0]
    assert line["val/acc"] is None and float(line["personal/val/acc"] or 0) > 0.5, "three classes each"


def test_alone_statistics_stay_too() -> None:
    runs = [finished("algorithm=local", *SMALL, engine=engine, model=Layered()) for engine in ("loop", "stacked", "im2col")]
    assert runs[0].group.payload == 0 and runs[0].sole_run.traffic.messages == 0
    for run in runs[1:]:
        for name in ("personal", "personal_statistics"):
            torch.testing.assert_close(own(run, name), own(runs[0], name), rtol=1e-12, atol=1e-12)
    assert torch.equal(runs[0].state.buffers["model"], runs[0].group.initial([0])[1]["model"])


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("server=adam", "algorithm=local: clients train alone, without a server; leave server and its keys out"),
        ("uplink=topk", "uplink=topk: clients of algorithm=local send nothing that it could encode; leave uplink out"),
    ],
)
def test_alone_there_is_no_server(word: str, line: str) -> None:
    with pytest.raises(UserError, match=line):
        experiment("algorithm=local", *SMALL, word)


def test_lg_fedavg_averages_the_head_alone() -> None:
    run, fedper = (trainer(f"algorithm={name}", *SMALL) for name in ("lg_fedavg", "fedper"))
    assert run.group.personal == fedper.group.shared and run.group.shared == fedper.group.personal
    before = run.state.model.clone()
    while not run.finished:
        run.run_round()
    body, head = run.group.personal, run.group.shared
    assert torch.equal(body.of(run.state.model), body.of(before)) and not torch.equal(head.of(run.state.model), head.of(before))
    assert run.sole_run.traffic.bytes_up == run.sole_run.traffic.bytes_down == 4 * 3 * 8 * head.width
    assert_same(finished("algorithm=lg_fedavg", "algorithm.personal_layers=none", *SMALL), finished("algorithm=fedavg", *SMALL))
    u, v = Coupled("algorithm=lg_fedavg", "C=1", "J=1", b=(1, 3)).after(1)
    assert [u, *v] == pytest.approx([0.2, 0.1, 0.3], abs=1e-14)


@pytest.mark.parametrize("engine", ["loop", "stacked"])
def test_fedbabus_head_keeps_its_initial_values(engine: str) -> None:
    """Whatever the optimizers do: weight decay, momentum and Adam's eps would move what has no gradient, or a rounded one."""
    run = finished("algorithm=fedbabu", *SMALL, "optimizer.weight_decay=0.1", "server=adam", engine=engine)
    initial, head = run.group.initial([0])[0], run.group.columns["head"]
    assert head.names == tuple(f"{run.group.layout.head}.{part}" for part in ("weight", "bias"))
    assert torch.equal(head.of(run.state.model), head.of(initial))
    assert not torch.equal(run.state.model, initial)
    assert run.sole_run.traffic.bytes_up == run.sole_run.traffic.bytes_down == 4 * 3 * 8 * (run.group.layout.size - head.width)
    assert "personal" not in run.group.kept_widths, "what is the same for all is kept for none"
    line = run.evaluate()[0]
    assert line["val/acc"] is not None and line["personal/val/acc"] is not None


def test_fedbabus_body_is_that_of_a_network_whose_head_is_frozen() -> None:
    """Of one client that takes plain steps: the loss of the whole network, whose head is a constant."""
    run = trainer("algorithm=fedbabu", *SMALL, "optimizer=sgd", "C=1", "samples=null", "rounds=1")
    other = trainer("algorithm=fedper", *SMALL, "optimizer=sgd", "C=1", "samples=null", "rounds=1")
    body = run.group.columns["body"]
    assert run.group.shared.names == body.names == other.group.shared.names
    step = other.sole_run.experiment.algorithm.step

    def frozen(rows, gradient, batches, j):  # type: ignore[no-untyped-def]
        head = other.group.personal.of(rows.parameters).clone()
        step(rows, gradient, batches, j)
        other.group.personal.write(rows.parameters, head)

    other.sole_run.experiment.algorithm.step = frozen  # type: ignore[method-assign]
    for each in (run, other):
        each.run_round()
    torch.testing.assert_close(run.state.model, other.state.model, rtol=1e-13, atol=1e-13)


def test_fedbabu_without_a_head_is_fedavg() -> None:
    fedavg, run = finished("algorithm=fedavg", *SMALL), finished("algorithm=fedbabu", "algorithm.personal_layers=none", *SMALL)
    assert torch.equal(fedavg.state.model, run.state.model) and fedavg.sole_run.traffic == run.sole_run.traffic
    with pytest.raises(UserError, match=r"algorithm.personal_layers=all: nothing is left to be trained; choose fewer layers"):
        trainer("algorithm=fedbabu", "algorithm.personal_layers=all", *SMALL)


@pytest.mark.parametrize("part", ["all", "head", "body"])
def test_fedbabu_tunes_one_part_before_it_is_judged(part: str) -> None:
    run = finished("algorithm=fedbabu", f"algorithm.ft_part={part}", "algorithm.ft_lr=0.1", *SMALL)
    algorithm, clients = run.sole_run.experiment.algorithm, run.cohorts.uncharged(run.sole_run, 0, np.arange(6), run.state)
    assert isinstance(algorithm, FedBABU)
    models = run.state.model.repeat(6, 1)
    tuned, columns = algorithm.adapt(models, clients), algorithm.columns(run.group.layout)
    for name, each in columns.items():
        assert torch.equal(each.of(tuned), each.of(models)) == (part not in (name, "all"))
    assert torch.equal(algorithm.join(run.state, models, clients, 5), models), "those who join tune as all others do, and no more"
    whole = FedBABU(ft_lr=0.1).adapt(models, clients)
    assert torch.equal(whole, tuned) == (part == "all")
    algorithm.ft_steps = 0
    assert torch.equal(algorithm.adapt(models, clients), models)


def test_fedbabus_numbers_are_checked() -> None:
    for word, line in (
        ("ft_part=neck", "algorithm.ft_part=neck: choose all, head or body"),
        ("ft_steps=-1", "algorithm.ft_steps=-1: must be 0 or more"),
        ("ft_lr=-1", "algorithm.ft_lr=-1.0: must be 0 or more"),
    ):
        with pytest.raises(UserError, match=line):
            experiment("algorithm=fedbabu", f"algorithm.{word}", *SMALL)
