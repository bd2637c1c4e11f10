"""What becomes of BatchNorm's running statistics: averaged, local or frozen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fl_hydra.errors import UserError
from fl_hydra.models.convmixer import ConvMixer
from fl_hydra.training.trainer import Trainer
from tests.support.capture import Recorder
from tests.support.exact import assert_exact
from tests.support.layers import FEDAVG, Layered, batch_of, gradient_of, torch_module
from tests.support.make import experiment

ENGINES = ("loop", "stacked", "im2col")


def made(statistics: str, *more: str, engine: str = "stacked", frozen_after: float = 0.5, dropout: float = 0.0) -> Trainer:
    model = Layered(statistics=statistics, frozen_after=frozen_after, dropout=dropout)
    return Trainer(experiment(*FEDAVG, *more, model=model), engine=engine)


def test_local_statistics_change_no_training_and_are_not_sent() -> None:
    averaged, local = made("averaged"), made("local")
    initial = local.state.buffers["model"].clone()
    while not averaged.finished:
        averaged.run_round()
        local.run_round()
        assert torch.equal(averaged.state.model, local.state.model), "training takes statistics of batches"
    assert torch.equal(local.state.buffers["model"], initial)
    assert not torch.equal(averaged.state.buffers["model"], initial)
    own = local.group.client_statistics(local.state, local.sole_run.clients, np.arange(8))
    assert own is not None and len({tuple(each) for each in own.tolist()}) >= 4, "each that took part has its own"
    sent = 8 * local.group.layout.size
    assert local.group.payload == sent
    assert local.sole_run.traffic.bytes_up < averaged.sole_run.traffic.bytes_up
    assert local.sole_run.traffic.bytes_up % sent == 0


def test_clients_are_judged_with_their_own_statistics() -> None:
    run = made("local", "C=1")
    while not run.finished:
        run.run_round()
    line = run.evaluate()[0]
    assert line["val/acc"] is None and line["test/loss"] is None
    own = run.group.client_statistics(run.state, run.sole_run.clients, np.arange(8))
    assert own is not None
    samples, shares = run.groups[0].personal._shares.of(run.sole_run, "test", torch.arange(len(run.split.test)))
    losses = []
    for client, share in enumerate(shares):
        assert share is not None
        module = torch_module(run, statistics=own[client]).eval()
        with torch.no_grad():
            losses.append(float(nn.functional.cross_entropy(module(samples.plain(share)), samples.targets[share])))
    assert line["personal/test/loss"] == pytest.approx(np.mean(losses), rel=1e-12)


@pytest.mark.parametrize("engine", ENGINES)
def test_statistics_frozen_from_the_beginning_leave_an_affine_layer(engine: str) -> None:
    run = made("frozen", engine=engine, frozen_after=0)
    initial = run.state.buffers["model"].clone()
    batch = batch_of(run, torch.arange(6)[None])
    batch.fixed = True
    gradient = run.group.engine.gradient(run.state.model, batch)
    module = torch_module(run).eval()
    nn.functional.cross_entropy(module(batch.inputs[0]), batch.targets[0]).backward()
    assert_exact(gradient[0], gradient_of(module, run))
    while not run.finished:
        run.run_round()
    assert torch.equal(run.state.buffers["model"], initial)
    assert run.group.payload == 8 * run.group.layout.size and run.sole_run.traffic.bytes_down % run.group.payload == 0


def test_statistics_freeze_within_a_run() -> None:
    """FixBN: up to then as averaged ones; after that they are sent, do not change, and are those of training."""
    averaged, runs = made("averaged"), [made("frozen", engine=engine) for engine in ENGINES]
    frozen = None
    while not runs[0].finished:
        done, before = runs[0].sole_run.done, runs[0].sole_run.traffic.bytes_up
        for run in (averaged, *runs):
            run.run_round()
        up = runs[0].sole_run.traffic.bytes_up - before
        if done < 0.5:
            assert torch.equal(runs[1].state.model, averaged.state.model)
            assert up == 4 * runs[0].group.payload
        else:
            frozen = runs[0].state.buffers["model"].clone() if frozen is None else frozen
            assert torch.equal(runs[0].state.buffers["model"], frozen)
            assert not torch.equal(runs[1].state.model, averaged.state.model)
            assert up == 4 * 8 * runs[0].group.layout.size
        for run in runs[1:]:
            for key, tensor in run.state.tensors().items():
                torch.testing.assert_close(tensor, runs[0].state.tensors()[key], rtol=1e-12, atol=1e-12)
    assert frozen is not None


@pytest.mark.parametrize("statistics", ["local", "frozen"])
def test_resumed_replayed_and_packed_runs_are_the_run(statistics: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fl_hydra.training.round_inputs.GRAPH_STEPS", 3)
    model = Layered(statistics=statistics, dropout=0.3)
    experiments = [experiment(*FEDAVG, "samples=600", f"seed={seed}", model=model) for seed in (0, 1)]
    experiments[1] = replace(experiments[1], budget=900)
    whole, resumed = (Trainer(experiments[0], engine="stacked", client_folders=[tmp_path]) for _ in range(2))
    replayed, packed = Trainer(experiments[0], engine="stacked"), Trainer(*experiments, engine="stacked")
    recorder = Recorder(replayed)
    while not whole.finished:
        if whole.sole_run.round == 5:
            resumed.restore(whole.checkpoint())
        for run in (whole, replayed, packed, *([resumed] if whole.sole_run.round >= 5 else [])):
            run.run_round()
    assert sum(recorder.replays) > 3
    line = whole.evaluate()
    for run in (replayed, packed, resumed):
        assert run.evaluate([0]) == line
        for key, tensor in whole.state.tensors().items():
            assert torch.equal(run.state.tensors()[key][:1], tensor), key


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("model=small model.statistics=local", "model=small has no BatchNorm"),
        ("model=resnet20_gn model.statistics=frozen", "model=resnet20_gn has no BatchNorm"),
        ("model=resnet20 algorithm=localsgd model.statistics=local", "algorithm=localsgd has workers"),
        ("model=resnet20 algorithm=gossip model.statistics=frozen", "workers of algorithm=gossip have statistics of their own"),
        ("model=resnet20 model.statistics=local participation=afl", "participation=afl: asks for losses"),
        ("model=resnet20 model.statistics=local swa.start=0.5", "swa.start=0.5: averages the server's models"),
        ("model=resnet20 model.statistics=global", "choose averaged, local, frozen"),
        ("model=resnet20 model.statistics=frozen model.frozen_after=1", "a fraction of the budget"),
        ("model=resnet20_gn model.groups=3", "model.groups=3: does not divide 16 channels; choose 2, say"),
        ("model=lenet_gn model.norm=instance", "choose none, batch, group, layer"),
        ("model=vit model.patch=5", "cannot be divided into such patches"),
        ("model=vit model.heads=3", "must divide model.width=128"),
        ("model=convnext model.kernel=4", "model.kernel=4: must be odd"),
        ("model=convnext model.stages=5", "32x32 is needed"),
    ],
)
def test_what_does_not_fit_is_one_line(words: str, line: str) -> None:
    with pytest.raises(UserError, match=line) as caught:
        Trainer(experiment(*([] if "algorithm" in words else ["algorithm=fedavg"]), *words.split()), engine="loop")
    assert "\n" not in str(caught.value)


def test_batch_norm_fails_where_clients_have_one_class_and_group_norm_does_not() -> None:
    """Hsieh et al. 2020: a client's batches have statistics of one class, those of the evaluated model are of all; not so in groups."""
    words = ("algorithm=fedavg", "K=120", "C=0.2", "J=1", "batch_size=8", "optimizer.lr=0.3", "samples=11520")
    accuracy = {}
    for norm, division in (("batch", "sharding=iid"), ("batch", "sharding=classes"), ("group", "sharding=classes")):
        model = ConvMixer(norm=norm, patch=4, width=16, depth=1, kernel=3)
        run = Trainer(experiment(*words, division, "N_c=1", model=model), engine="stacked")
        while not run.finished:
            run.run_round()
        accuracy[norm, division] = run.evaluate()[0]["test/acc"] or 0.0
    assert accuracy["batch", "sharding=iid"] > 0.4
    assert accuracy["group", "sharding=classes"] > 0.25
    assert accuracy["batch", "sharding=classes"] < 0.15, "as by chance"
