"""BatchNorm's running statistics, and parameters that are not trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fl_hydra
from fl_hydra.algorithms.base import State, algorithms
from fl_hydra.algorithms.fedavg import FedAvg
from fl_hydra.algorithms.fedsam import FedSAM
from fl_hydra.errors import UserError
from fl_hydra.models.small import Small
from fl_hydra.seams.clients import Clients
from fl_hydra.seams.rows import Batch, Gradient, Rows
from fl_hydra.training.trainer import Trainer
from tests.support.capture import Recorder, under_guard
from tests.support.engines import SETTINGS
from tests.support.exact import assert_exact
from tests.support.layers import FEDAVG, Layered, batch_of, gradient_of, layered, statistics_of, torch_module
from tests.support.make import experiment, kind

ENGINES = ("loop", "stacked", "im2col")
ALIKE = (
    *("centralized", "localsgd", "lookahead", "slowmo", "diloco", "gossip_pga", "fedprox", "easgd", "shat", "fedbn"),
    *("fedsim", "lg_fedavg", "local"),
)
"""Methods that treat them as another one does."""

ROUGH = ("participation.dropout=0.4", "local_steps.spread=0.5")
"""Clients that drop out, and clients whose samples are used up before the others'."""


def of(name: str) -> tuple[str, ...]:
    """A few rounds of a method, of which the last is cut."""
    more = {"fedper": ("algorithm.personal_layers=BatchNorm2d",), "scaffold": ("optimizer=sgd",)}.get(name, ())
    samples = 250 if kind(name) == "fedavg" else 400
    return (f"algorithm={name}", *SETTINGS[kind(name)], *more, f"samples={samples}", "batch_size=8")


def moved(run: Trainer) -> Trainer:
    """With statistics that are not the initial ones."""
    statistics = run.state.buffers["model"]
    statistics.copy_(torch.linspace(0.5, 1.5, statistics.numel()).view_as(statistics))
    return run


@pytest.mark.parametrize("engine", ENGINES)
def test_a_step_is_that_of_torch_without_the_padding(engine: str) -> None:
    run = moved(layered(*FEDAVG, engine=engine))
    which = torch.arange(18).view(3, 6) % 17
    weights = torch.ones(3, 6, dtype=torch.float64)
    weights[1, 4:] = 0
    batch = batch_of(run, which, weights)
    noise = 0.1 * torch.randn(3, run.group.layout.size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    models = run.state.model + noise
    gradients = run.group.engine.gradient(models, batch).clone()
    assert batch.statistics is not None
    for row, count in enumerate((6, 4, 6)):
        module = torch_module(run, models[row])
        nn.functional.cross_entropy(module(batch.inputs[row, :count]), batch.targets[row, :count]).backward()
        assert_exact(gradients[row], gradient_of(module, run))
        assert_exact(batch.statistics[row], statistics_of(module, run))
    found = run.group.engine.outputs(models, batch).logits
    for row in range(3):
        with torch.no_grad():
            assert_exact(found[row], torch_module(run, models[row], batch.statistics[row]).eval()(batch.inputs[row]))


@pytest.mark.parametrize("engine", ENGINES)
def test_one_sample_has_no_variance(engine: str) -> None:
    run = moved(layered(*FEDAVG, engine=engine))
    weights = torch.tensor([[1.0, 0, 0, 0, 0, 0]], dtype=torch.float64)
    batch = batch_of(run, torch.arange(6)[None], weights)
    assert run.group.engine.gradient(run.state.model, batch).isfinite().all()
    before, after = (run.group.layout.statistics.views(each) for each in (run.state.buffers["model"], batch.statistics))  # type: ignore[arg-type]
    assert torch.equal(after["6.running_var"], before["6.running_var"]), "of a linear layer's outputs, one number of each"
    for name in ("1.running_mean", "1.running_var", "6.running_mean"):
        assert not torch.equal(after[name], before[name])
    with pytest.raises(UserError, match="choose batch_size=2 or more"):
        layered(*FEDAVG, "batch_size=1", engine=engine)


@pytest.mark.parametrize("engine", ENGINES)
def test_only_the_metered_gradient_in_training_updates(engine: str) -> None:
    run = moved(layered(*FEDAVG, engine=engine))
    batch = batch_of(run, torch.arange(12).view(2, 6))
    assert batch.statistics is not None
    models, before = run.state.model.repeat(2, 1), batch.statistics.clone()
    run.group.engine.gradient(models, batch, metered=False)
    run.group.engine.product(models, models, batch)
    run.group.engine.outputs(models, batch)
    assert torch.equal(batch.statistics, before)
    batch.training = False  # by the running statistics: of each sample by itself
    gradients = run.group.engine.gradient(models, batch, metered=False).clone()
    module = torch_module(run).eval()
    nn.functional.cross_entropy(module(batch.inputs[0]), batch.targets[0]).backward()
    assert_exact(gradients[0], gradient_of(module, run))
    batch.training = True
    run.group.engine.gradient(models, batch)
    assert not torch.equal(batch.statistics, before)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_product_goes_through_the_statistics_of_the_batch(engine: str) -> None:
    run = layered(*FEDAVG, engine=engine)
    batch = batch_of(run, torch.arange(12).view(2, 6))
    models, eps = run.state.model.repeat(2, 1), 1e-6
    vectors = torch.randn(models.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ahead, behind = (run.group.engine.gradient(models + sign * eps * vectors, batch, metered=False).clone() for sign in (1, -1))
    found = run.group.engine.product(models, vectors, batch)
    torch.testing.assert_close(found, (ahead - behind) / (2 * eps), rtol=1e-4, atol=1e-5)


@dataclass
class Recording(FedAvg):
    """Notes batches and the weights of the mean."""

    def __post_init__(self) -> None:
        self.batches: list[Batch] = []
        self.weights: list[Tensor] = []

    def step(self, rows: Rows, gradient: Gradient, batches: Sequence[Batch], j: int) -> None:
        self.batches.append(batches[0])
        super().step(rows, gradient, batches, j)

    def outer(self, state: State, clients: Clients, mean: Tensor) -> None:
        self.weights.append(clients.weights.clone())
        super().outer(state, clients, mean)


@pytest.mark.parametrize("more", [(), ROUGH, ("server=adam",)])
def test_fedavg_is_that_of_torch(more: tuple[str, ...]) -> None:
    """The server's statistics are the mean of the rows', which weight decay, momentum and an outer optimizer leave alone."""
    algorithm = Recording()
    words = [word for word in FEDAVG if not word.startswith("optimizer")]
    words += ["samples=310"]  # none of the rows has one sample in its last batch, which torch refuses
    run = layered(*words, "optimizer=sgdm", "optimizer.weight_decay=0.1", *more, algorithm=algorithm)
    while not run.finished:
        starts = run.state.model[0].clone(), run.state.buffers["model"][0].clone()
        algorithm.batches.clear()
        reported = len(algorithm.weights)
        run.run_round()
        if len(algorithm.weights) == reported:
            assert torch.equal(run.state.buffers["model"][0], starts[1])
            continue
        weights = algorithm.weights[-1]
        ends, statistics = torch.zeros_like(starts[0]), torch.zeros_like(starts[1])
        for row, weight in enumerate(weights):
            module = torch_module(run, *starts)
            optimizer = torch.optim.SGD(module.parameters(), lr=0.0, momentum=0.9, weight_decay=0.1)
            for batch in algorithm.batches:
                own = slice(None) if batch.weights is None else slice(0, int(batch.weights[row].sum()))
                if not len(batch.targets[row, own]):
                    continue
                optimizer.zero_grad()
                nn.functional.cross_entropy(module(batch.inputs[row, own]), batch.targets[row, own]).backward()
                optimizer.param_groups[0]["lr"] = run.sole_run.experiment.peak_lr * len(batch.targets[row, own]) / 6
                optimizer.step()
            ends += weight * run.group.layout.flat(parameter.detach() for parameter in module.parameters())
            statistics += weight * statistics_of(module, run)
        assert_exact(run.state.buffers["model"][0], statistics)
        if "server=adam" not in more:
            assert_exact(run.state.model[0], ends)
    assert run.evaluate()[0]["val/loss"] == pytest.approx(_loss(run), abs=1e-12)


def _loss(run: Trainer) -> float:
    with torch.no_grad():
        module, samples = torch_module(run).eval(), run.split.validation
        return float(nn.functional.cross_entropy(module(samples.plain(torch.arange(len(samples)))), samples.targets))


@pytest.mark.parametrize("name", [name for name in algorithms if name not in ALIKE and not algorithms[name].mixes])
def test_engines_agree(name: str) -> None:
    rough = ROUGH if name == "fedavg" else ()
    words = (*of(name), *rough, "precision=fp64")
    engines = ENGINES if name == "fedavg" else ENGINES[:2]
    runs = [layered(*words, engine=engine, dropout=0.3, frozen=True) for engine in engines]
    while not runs[0].finished:
        for run in runs:
            run.run_round()
    lines = [run.evaluate()[0] for run in runs]
    for run, line in zip(runs[1:], lines[1:], strict=True):
        for key, tensor in run.state.tensors().items():
            torch.testing.assert_close(tensor, runs[0].state.tensors()[key], rtol=1e-12, atol=1e-12)
        assert line.keys() == lines[0].keys()
        for key, value in line.items():
            assert value == pytest.approx(lines[0][key], abs=1e-11), key
    assert not torch.equal(runs[0].state.buffers["model"], runs[0].group.initial([0])[1]["model"])
    assert torch.equal(runs[0].state.buffers["frozen"], runs[0].group.initial([0])[1]["frozen"])


@pytest.mark.parametrize("name", ["fedavg", "gossip", "a2cid2", "fedper"])
def test_a_pack_is_each_alone(name: str) -> None:
    words = [(*of(name), f"seed={seed}") for seed in (0, 1)]
    options = {"model": Layered(dropout=0.3, frozen=True)}
    experiments = [experiment(*each, **options) for each in words]
    packed, alone = Trainer(*experiments, engine="stacked"), [Trainer(each, engine="stacked") for each in experiments]
    assert not torch.equal(*packed.state.buffers["frozen"]), "each has constants of its own"
    for _ in range(2):
        for run in (packed, *alone):
            run.run_round()
    for index, run in enumerate(alone):
        for key, tensor in run.state.tensors().items():
            assert torch.equal(packed.state.tensors()[key][index], tensor[0]), key
        assert packed.evaluate([index]) == run.evaluate()
    packed.retain_runs([1])
    packed.run_round()
    alone[1].run_round()
    for key, tensor in alone[1].state.tensors().items():
        assert torch.equal(packed.state.tensors()[key], tensor), key


@pytest.mark.parametrize("name", ["fedavg", "gossip", "a2cid2", "fedper"])
@pytest.mark.parametrize("engine", ["loop", "stacked"])
def test_a_resumed_run_is_the_undisturbed_one(name: str, engine: str, tmp_path: Path) -> None:
    made = experiment(*of(name), model=Layered(dropout=0.3, frozen=True))
    whole, killed, resumed = (Trainer(made, engine=engine, client_folders=[tmp_path / each]) for each in ("0", "1", "1"))
    for _ in range(2):
        whole.run_round()
        killed.run_round()
    resumed.restore(killed.checkpoint())
    while not whole.finished:
        whole.run_round()
        resumed.run_round()
    for key, tensor in whole.state.tensors().items():
        assert torch.equal(resumed.state.tensors()[key], tensor), key
    assert whole.evaluate() == resumed.evaluate()


@pytest.mark.parametrize("name", ["fedavg", "hierarchical", "fedper"])
@pytest.mark.parametrize("engine", ["stacked"])
def test_replayed_steps_are_the_steps(name: str, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fl_hydra.training.round_inputs.GRAPH_STEPS", 3)
    eager, replayed = (layered(*of(name), "samples=1500", engine=engine, dropout=0.3, frozen=True) for _ in range(2))
    recorder = Recorder(replayed)
    while not eager.finished:
        eager.run_round()
        replayed.run_round()
    assert sum(recorder.replays) > 3
    for key, tensor in eager.state.tensors().items():
        assert torch.equal(replayed.state.tensors()[key], tensor), key


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_round_reads_nothing_back_and_keeps_statistics_in_full(engine: str, precision: str) -> None:
    run = layered(*FEDAVG, f"precision={precision}", engine=engine, dropout=0.3, frozen=True)
    under_guard(run)
    assert run.state.buffers["model"].dtype == torch.float32
    (line,) = run.evaluate()
    assert line["val/loss"] is not None


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_lower_precision_is_near(precision: str) -> None:
    runs = [layered(*FEDAVG, f"precision={each}", engine=engine) for each in ("fp32", precision) for engine in ("loop", "stacked")]
    for run in runs:
        run.run_round()
        torch.testing.assert_close(run.state.buffers["model"], runs[0].state.buffers["model"], rtol=0.05, atol=0.05)


def test_no_method_touches_them() -> None:
    """Of whatever method, one client that reports ends with the statistics that its batches make, and the server takes them as they are."""
    words = ("algorithm=fedavg", "K=4", "C=0.25", "J=1", "batch_size=6", "precision=fp64", "rounds=1")
    found = {}
    for name, optimizer in (("fedavg", "sgd"), ("scaffold", "sgd"), ("fedprox", "adamw"), ("fedsam", "lars"), ("fedavg", "sgdm")):
        run = layered(*words[1:], f"algorithm={name}", f"optimizer={optimizer}", "optimizer.weight_decay=0.5")
        assert run.group.layout.size == run.state.model.shape[1] == sum(run.group.layers.sizes)
        run.run_round()
        found[name, optimizer] = run.state.buffers["model"]
    for statistics in found.values():
        assert torch.equal(statistics, found["fedavg", "sgd"])


def test_the_second_gradient_of_fedsam_updates_nothing() -> None:
    @dataclass
    class Counting(FedSAM):
        hyper: ClassVar[tuple[str, ...]] = ("rho",)

        def step(self, rows: Rows, gradient: Gradient, batches: Sequence[Batch], j: int) -> None:
            assert batches[0].statistics is not None
            before = batches[0].statistics.clone()
            super().step(rows, gradient, batches, j)
            again = batch_like(batches[0], before)
            gradient_of_rows = run.group.engine.gradient(rows.starts.contiguous(), again)
            assert gradient_of_rows.isfinite().all()
            assert_exact(batches[0].statistics, again.statistics)  # type: ignore[arg-type]

    def batch_like(batch: Batch, statistics: Tensor) -> Batch:
        made = batch.rows(slice(0, len(batch.inputs)))
        made.statistics, made.meter, made.calls = statistics, torch.zeros_like(batch.meter), batch.calls.copy()
        return made

    run = layered("algorithm=fedsam", *FEDAVG[1:], "J=1", "algorithm.rho=0.5", algorithm=Counting(rho=0.5))
    run.run_round()


def test_workers_keep_theirs_and_gossip_mixes_them_as_models() -> None:
    run = layered("algorithm=gossip", "K=4", "J=1", "algorithm.topology=complete", "precision=fp64", "batch_size=6", "rounds=2")
    run.run_round()
    workers = run.state.buffers["workers"][0]
    assert_exact(workers, workers[:1].expand_as(workers))
    apart = layered("algorithm=async_sgd", "K=4", "J=1", "precision=fp64", "batch_size=6", "rounds=2")
    apart.run_round()
    own = apart.state.buffers["workers"][0]
    assert not torch.equal(own[0], own[1])
    assert_exact(apart.state.buffers["model"], own.mean(0, keepdim=True))
    assert_exact(workers.mean(0), own.mean(0))  # of one batch each, at equal models


def test_statistics_beside_personal_layers_stay_with_their_client() -> None:
    """FedBN: `personal_layers=BatchNorm*`."""
    words = (
        "algorithm=fedper",
        "algorithm.personal_layers=BatchNorm2d",
        "K=4",
        "C=0.5",
        "J=2",
        "batch_size=6",
        "precision=fp64",
        "rounds=3",
    )
    run = layered(*words)
    initial = run.state.buffers["model"].clone()
    while not run.finished:
        run.run_round()
    layout, server = run.group.layout, run.state.buffers["model"][0]
    assert layout.statistics.names[:2] == ("1.running_mean", "1.running_var") and layout.statistics.sizes == [3, 3, 8, 8]
    assert torch.equal(server[:6], initial[0, :6]) and not torch.equal(server[6:], initial[0, 6:])
    own = run.group.client_statistics(run.state, run.sole_run.clients, np.arange(4))
    assert own is not None
    assert torch.equal(own[:, 6:], server[6:].expand(4, -1)) and len({tuple(each) for each in own[:, :6].tolist()}) >= 3
    assert run.evaluate()[0]["personal/val/loss"] is not None
    sent = layout.size - 6 + 16
    assert run.group.payload == 8 * sent
    assert run.sole_run.traffic.bytes_up == run.sole_run.traffic.bytes_down == 3 * 2 * 8 * sent


def test_they_are_sent_with_the_model_and_what_is_frozen_is_not() -> None:
    plain, normed = (layered(*FEDAVG, norm=norm, frozen=True) for norm in (False, True))
    assert plain.group.layout.frozen.size == 8 * 8 + 8 + 8
    assert normed.group.layout.size == plain.group.layout.size + 3 + 8, "two each, and no biases"
    for run, statistics in ((plain, 0), (normed, 22)):
        before = run.state.buffers["frozen"].clone()
        run.run_round()
        traffic = run.sole_run.traffic
        assert traffic.bytes_up == traffic.bytes_down == 4 * 8 * (run.group.layout.size + statistics)
        assert traffic.messages == 8 and traffic.averages == 1, "one message each way"
        assert torch.equal(run.state.buffers["frozen"], before)


@pytest.mark.parametrize("engine", ENGINES)
def test_frozen_parameters_are_constants_of_the_run(engine: str) -> None:
    run = layered(*FEDAVG, engine=engine, norm=False, frozen=True)
    batch = batch_of(run, torch.arange(12).view(2, 6))
    gradients = run.group.engine.gradient(run.state.model.repeat(2, 1), batch)
    module = torch_module(run)
    nn.functional.cross_entropy(module(batch.inputs[1]), batch.targets[1]).backward()
    assert_exact(gradients[1], gradient_of(module, run))
    assert module[7].weight.grad is None  # type: ignore[index]
    seeds = [layered(*FEDAVG, f"seed={seed}", norm=False, frozen=True).state.buffers["frozen"] for seed in (0, 0, 1)]
    assert torch.equal(seeds[0], seeds[1]) and not torch.equal(seeds[0], seeds[2])


@pytest.mark.parametrize("at_once", [2, None])
def test_batches_are_never_divided(at_once: int | None) -> None:
    made = experiment(*FEDAVG, model=Layered())
    if at_once is None:
        run = Trainer(made, engine="loop")
        run.group.engine.samples_at_once = 5  # memory ran out meanwhile
        with pytest.raises(UserError, match="batch_size=6: BatchNorm takes statistics of whole batches, and 5 samples"):
            run.run_round()
    else:
        with pytest.raises(UserError, match="choose batch_size=2 or less"):
            Trainer(made, engine="loop", samples_at_once=at_once)
    assert Trainer(experiment(*FEDAVG, "batch_size=600", model=Layered()), engine="loop").group.engine.samples_at_once >= 600


def test_unbiased_weights_leave_no_negative_variance() -> None:
    run = layered(*FEDAVG, "participation=importance", "participation.dropout=0.4")
    while not run.finished:
        run.run_round()
        for name, view in run.group.layout.statistics.views(run.state.buffers["model"]).items():
            assert view.isfinite().all() and (name.endswith("mean") or (view >= 0).all())


@pytest.mark.parametrize("words", [("algorithm=fedavg", "K=6", "C=0.5", "J=2"), ("algorithm=gossip", "K=4", "J=2")])
def test_a_loaded_module_has_them(words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Small, "build", lambda self, info: Layered(dropout=0.3, frozen=True).build(info))
    run = fl_hydra.run(*words, "samples=500", "batch_size=16", "engine=loop", "threads=1", outputs=tmp_path, quiet=True)
    arrays = run.experiment.dataset.load(run.experiment.data)  # type: ignore[attr-defined]
    right = run.predict(arrays.test_images).argmax(1).numpy() == arrays.test_labels
    assert float(right.mean()) == run.metrics["test/acc"][-1]
    if run.clients:
        means = [run.client(k)[1].running_mean for k in range(4)]  # type: ignore[index]
        assert not torch.equal(means[0], means[1]) and torch.allclose(torch.stack(means).mean(0), run.module[1].running_mean)  # type: ignore[index]
