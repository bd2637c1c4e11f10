"""Dropout, drawn from the keyed counter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import grad, vmap

from fl_hydra.randomness import key
from fl_hydra.training.batch_layers import BatchLayers
from fl_hydra.training.batch_stream import BatchStream, Beside
from fl_hydra.training.image_samples import augmentation_stream
from fl_hydra.training.shard_passes import RunShards
from fl_hydra.training.trainer import Trainer
from tests.support.exact import assert_exact
from tests.support.layers import FEDAVG, batch_of, layered, torch_module

STREAMS = torch.tensor([key(0, "a test", sample) & 0xFFFFFFFF for sample in range(64)])


def passed(work: Callable[[Tensor], Tensor], inputs: Tensor, draws: Tensor = STREAMS) -> Tensor:
    with BatchLayers(torch.float64, draws=draws[: len(inputs)]):
        return work(inputs)


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_what_is_kept_and_how_much_of_it(p: float) -> None:
    ones = torch.ones(64, 4000, dtype=torch.float64)
    found = passed(nn.Dropout(p), ones)
    kept = found > 0
    assert abs(float(kept.double().mean()) - (1 - p)) < 5 * (p * (1 - p) / ones.numel()) ** 0.5 + 1e-12
    if p < 1:
        assert_exact(found[kept], (ones / (1 - p))[kept])
    if 0 < p < 1:
        rates = kept.double().mean(1), kept.double().mean(0)
        for rate, count in zip(rates, (4000, 64), strict=True):
            assert float(((rate - (1 - p)) / (p * (1 - p) / count) ** 0.5).square().mean()) == pytest.approx(1, abs=0.6)


@pytest.mark.parametrize("layer", [nn.Dropout1d(0.4), nn.Dropout2d(0.4), nn.Dropout3d(0.4), nn.FeatureAlphaDropout(0.4)])
def test_whole_channels(layer: nn.Module) -> None:
    shape = (8, 50, *(3,) * {"1": 1, "2": 2, "3": 3}.get(type(layer).__name__[7:8], 2))
    found = passed(layer, torch.ones(shape, dtype=torch.float64)).flatten(2)
    assert torch.equal(found, found[..., :1].expand_as(found)) and len(found.unique()) == 2
    assert 0.5 < float((found[..., 0] > 0.5).double().mean()) < 0.7


def test_alpha_dropout_keeps_mean_and_variance() -> None:
    inputs = torch.randn(64, 5000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for layer in (nn.AlphaDropout(0.3), nn.FeatureAlphaDropout(0.3)):
        found = passed(layer, inputs)
        assert float(found.mean()) == pytest.approx(0, abs=0.02) and float(found.var()) == pytest.approx(1, abs=0.03)
    torch.manual_seed(0)
    theirs, ours = nn.AlphaDropout(0.3)(torch.ones_like(inputs)).unique(), passed(nn.AlphaDropout(0.3), torch.ones_like(inputs)).unique()
    assert_exact(ours, theirs)


def test_in_place_and_functional() -> None:
    inputs = torch.ones(4, 100, dtype=torch.float64)
    expected = passed(nn.Dropout(0.5), inputs)
    place = inputs.clone()
    assert torch.equal(passed(nn.Dropout(0.5, inplace=True), place), expected) and torch.equal(place, expected)
    assert torch.equal(passed(lambda value: F.dropout(value, 0.5, training=True), inputs), expected)
    assert torch.equal(passed(lambda value: F.dropout(value, 0.5, training=False), inputs), inputs)
    assert torch.equal(passed(nn.Dropout(0.5).eval(), inputs), inputs)
    twice = passed(nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.5)), inputs)
    assert int((twice == 4).sum()) > 10 and int(((twice == 0) & (expected > 0)).sum()) > 10, "each dropout of a pass has draws of its own"


def test_it_is_the_same_under_transforms() -> None:
    inputs = torch.randn(3, 4, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def score(row: Tensor, draws: Tensor) -> Tensor:
        return passed(nn.Dropout(0.3), row, draws).square().sum()

    draws = STREAMS[:12].view(3, 4)
    found = vmap(grad(score))(inputs, draws)
    for row in range(3):
        own = inputs[row].clone().requires_grad_()
        score(own, draws[row]).backward()
        assert torch.equal(found[row], own.grad)  # type: ignore[arg-type]


def test_a_sample_has_the_mask_that_it_has_alone() -> None:
    ones = torch.ones(10, 3, 8, 8, dtype=torch.float64)
    together = passed(nn.Dropout(0.5), ones)
    for sample in range(10):
        assert torch.equal(passed(nn.Dropout(0.5), ones[:1], STREAMS[sample : sample + 1])[0], together[sample])
    assert len({tuple(each) for each in together.flatten(1).tolist()}) == 10


@pytest.mark.parametrize("engine", ["loop", "stacked", "im2col"])
@pytest.mark.parametrize("at_once", [None, 2])
def test_a_gradient_is_that_of_torch_with_the_same_masks(engine: str, at_once: int | None) -> None:
    """Also where a batch is divided, as without BatchNorm it may be."""
    run = layered(*FEDAVG, engine=engine, norm=False, dropout=0.3)
    run.group.engine.samples_at_once = at_once or 512
    batch = batch_of(run, torch.arange(12).view(2, 6), draws=STREAMS[:12].view(2, 6))
    gradients = run.group.engine.gradient(run.state.model.repeat(2, 1), batch)
    for row in range(2):
        module = torch_module(run)
        with BatchLayers(torch.float64, draws=batch.draws[row]):  # type: ignore[index]
            F.cross_entropy(module(batch.inputs[row]), batch.targets[row]).backward()
        assert_exact(gradients[row], run.group.layout.flat(p.grad for p in module.parameters() if p.grad is not None))


def draws_of(run: Trainer) -> list[np.ndarray[Any, Any]]:
    """The draws of each batch of a round, [rows, B]."""
    found: list[np.ndarray[Any, Any]] = []
    gradient = run.group.engine.gradient

    def watched(parameters: Tensor, batch: Any, *more: Any, **keywords: Any) -> Tensor:
        found.append(batch.draws.numpy().copy())
        return gradient(parameters, batch, *more, **keywords)

    run.group.engine.gradient = watched  # type: ignore[method-assign]
    run.run_round()
    run.group.engine.gradient = gradient  # type: ignore[method-assign]
    return found


def test_masks_differ_between_samples_steps_rounds_clients_and_seeds() -> None:
    words = ("algorithm=fedavg", "K=4", "C=1", "J=3", "batch_size=6", "precision=fp64", "rounds=2")
    runs = [layered(*words, f"seed={seed}", norm=False, dropout=0.5) for seed in (0, 1)]
    draws = np.concatenate([np.concatenate(draws_of(run), 1).ravel() for run in runs for _ in range(2)])
    assert len(np.unique(draws)) == len(draws) == 2 * 2 * 4 * 3 * 6
    again = layered(*words, norm=False, dropout=0.5)
    assert np.array_equal(np.concatenate(draws_of(again), 1).ravel(), draws[:72])


def test_they_depend_on_seed_client_and_position_alone() -> None:
    run = layered(*FEDAVG, norm=False, dropout=0.5)

    def stream(clients: list[int], cursors: list[int], batches: int, size: int) -> BatchStream:
        rows = len(clients)
        none = np.zeros((rows, batches), np.int64)
        return BatchStream(
            run.split.train,
            torch.zeros(rows, batches, size, dtype=torch.int64),
            torch.tensor([augmentation_stream(0, client) for client in clients]),
            torch.tensor(cursors),
            None,
            torch.zeros(rows, 3),
            none,
            np.zeros((rows, batches, 3), np.int64),
            True,
        )

    both = [batch.draws for batch in stream([5, 7], [24, 12], 4, 6).batches(slice(0, 2), False, Beside())]
    alone = [batch.draws for batch in stream([7], [12], 2, 12).batches(slice(0, 1), False, Beside())]
    assert torch.equal(torch.cat([each[1] for each in both]), torch.cat([each[0] for each in alone]))  # type: ignore[index]
    event = stream([5, 7], [24, 12], 4, 6).at(np.array([1]), np.array([2]), Beside())
    assert torch.equal(event.draws[0], both[2][1])  # type: ignore[index]


def test_evaluation_has_none() -> None:
    """And a forward pass that a method asks for, and a pass over a shard."""
    run = layered(*FEDAVG, norm=False, dropout=0.5)
    module = torch_module(run).eval()
    batch = batch_of(run, torch.arange(12).view(2, 6), draws=STREAMS[:12].view(2, 6))
    with torch.no_grad():
        assert_exact(run.group.engine.outputs(run.state.model.repeat(2, 1), batch).logits[1], module(batch.inputs[1]))
    own = torch.from_numpy(run.sole_run.shards[0])
    F.cross_entropy(module(run.split.train.plain(own)), run.split.train.targets[own]).backward()
    found = RunShards(run.cohorts.passes, run.sole_run, run.state).gradient(np.array([0]), run.state.model)
    assert_exact(found[0], run.group.layout.flat(p.grad for p in module.parameters() if p.grad is not None))
    samples = run.split.validation
    with torch.no_grad():
        loss = F.cross_entropy(module(samples.plain(torch.arange(len(samples)))), samples.targets)
    assert run.evaluate()[0]["val/loss"] == pytest.approx(float(loss), abs=1e-12)


def test_a_model_without_such_layers_enters_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **keywords: Any) -> Any:
        raise AssertionError("a function mode is entered")

    for engine in ("loop", "stacked"):
        run = layered(*FEDAVG, norm=False, engine=engine)
        for where in ("engines", "loop_engine"):
            monkeypatch.setattr(f"fl_hydra.training.{where}.BatchLayers", refuse)
        run.run_round()
        run.evaluate()
        monkeypatch.undo()
        assert not run.state.buffers and run.group.buffers.statistics is None
