"""Rows and batches that are divided where memory is short."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fl_hydra.data.dataset import DatasetInfo
from fl_hydra.models.small import Small
from fl_hydra.training.engines import CPU_GRADIENT_BATCH
from fl_hydra.training.trainer import Trainer
from tests.support.engines import arguments
from tests.support.make import experiment, trainer


class Fits(torch.autograd.Function):
    """Lets inputs of so many samples pass, and of so many rows where rows are stacked; else raises the error."""

    @staticmethod
    def forward(inputs: Tensor, rows: int, samples: int, error: Exception) -> Tensor:
        if len(inputs) > samples:
            raise error
        return inputs.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None: ...

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return gradient, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, inputs: Tensor, rows: int, samples: int, error: Exception) -> tuple[Tensor, int]:
        if info.batch_size > rows:
            raise error
        stacked = inputs.movedim(in_dims[0], 0)
        Fits.apply(stacked[0], rows, samples, error)
        return stacked.clone(), 0


@dataclass
class Cramped(Small):
    """The small network on a device whose memory holds no more rows, or no more samples of a row."""

    rows: int = 2**31
    samples: int = 2**31
    error: Exception = field(default_factory=lambda: torch.OutOfMemoryError("made up"))

    def build(self, info: DatasetInfo) -> nn.Module:
        network, limits = super().build(info), (self.rows, self.samples, self.error)

        class Module(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.network = network

            def forward(self, inputs: Tensor) -> Tensor:
                if torch.is_grad_enabled():  # what is evaluated keeps nothing for a backward pass
                    inputs = Fits.apply(inputs, *limits)
                logits: Tensor = self.network(inputs)
                return logits

        return Module()


def test_chunked_rows_equal_whole_ones() -> None:
    """Blocks of two rows, as where no more fit, give the round of five together; so do the parts of a call after memory ran out."""
    settings = arguments("localsgd", "sgdm", "precision=fp64", "K=5")
    whole = trainer(*settings, engine="stacked")
    blocks = Trainer(experiment(*settings), engine="stacked", rows_at_once=2)
    assert [block.rows.stop - block.rows.start for block in blocks.group.division.blocks[0]] == [1, 2, 2]

    lines: list[str] = []
    short = Trainer(experiment(*settings, model=Cramped(rows=2)), engine="stacked", notify=lines.append)
    for run in (whole, blocks, short):
        while not run.finished:
            run.run_round()
    assert lines == ["5 rows at once do not fit into memory; going on with 3", "3 rows at once do not fit into memory; going on with 2"]
    for run in (blocks, short):
        torch.testing.assert_close(run.state.model, whole.state.model, rtol=1e-12, atol=1e-12)
        assert run.sole_run.computed == whole.sole_run.computed
        assert run.evaluate()[0]["train/loss"] == pytest.approx(float(whole.evaluate()[0]["train/loss"] or 0)) or run is short


@pytest.mark.parametrize("engine", ["loop", "stacked", "im2col"])
@pytest.mark.parametrize("settings", [("algorithm=centralized", "epochs=2"), ("algorithm=localsgd", "K=3", "J=2", "samples=700")])
def test_accumulated_batches_equal_whole_ones(engine: str, settings: tuple[str, ...]) -> None:
    """A batch in parts, asked for or found out when memory runs out, gives the gradient of all its samples, cut or not."""
    settings = (*settings, "batch_size=100", "precision=fp64")
    whole = trainer(*settings, engine=engine)
    parts = Trainer(experiment(*settings), engine=engine, samples_at_once=7)
    lines: list[str] = []
    short = Trainer(experiment(*settings, model=Cramped(samples=30)), engine=engine, notify=lines.append)
    assert (whole.group.samples_at_once, parts.group.samples_at_once) == (100, 7)
    for run in (whole, parts, short):
        while not run.finished:
            run.run_round()
    assert short.group.samples_at_once == 25
    sizes = [("samples", 100, 50), ("samples", 50, 25)]
    if engine != "loop" and "K=3" in settings:  # fewer rows are tried first
        sizes = [("rows", 3, 2), ("rows", 2, 1), *sizes]
    assert lines == [f"{before} {what} at once do not fit into memory; going on with {after}" for what, before, after in sizes]
    expected = whole.evaluate()[0]
    for run in (parts, short):
        torch.testing.assert_close(run.state.model, whole.state.model, rtol=1e-12, atol=1e-12)
        assert run.sole_run.computed == whole.sole_run.computed
        assert run.evaluate()[0]["train/loss"] == pytest.approx(float(expected["train/loss"] or 0), rel=1e-12)


def test_batches_are_divided_where_not_even_one_row_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    run = trainer("batch_size=1000", "epochs=1")
    assert run.group.samples_at_once == CPU_GRADIENT_BATCH
    monkeypatch.setattr("fl_hydra.training.memory.free_memory", lambda device: 2 * 2 * 100 * run.group.architecture.sample_bytes)
    assert trainer("batch_size=1000", "epochs=1").group.samples_at_once == 100


def test_free_memory_decides_no_bit_unless_it_is_short_which_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = arguments("localsgd", "sgdm", "K=5")
    usual = trainer(*settings, engine="stacked")
    lines: list[str] = []
    for free in (2**40, 2**30):
        monkeypatch.setattr("fl_hydra.training.memory.free_memory", lambda device, free=free: free)
        other = Trainer(experiment(*settings), engine="stacked", notify=lines.append)
        assert (other.group.rows_at_once, other.group.samples_at_once) == (usual.group.rows_at_once, usual.group.samples_at_once)
    assert not lines
    monkeypatch.setattr("fl_hydra.training.memory.free_memory", lambda device: 2 * 16 * 4 * usual.group.architecture.sample_bytes)
    short = Trainer(experiment(*settings), engine="stacked", notify=lines.append)
    assert short.group.rows_at_once < 5
    assert lines == [
        f"memory is short: {short.group.rows_at_once} rows of a run at once in place of 5; with more memory the last digits would differ"
    ]
    again = Trainer(experiment(*settings), engine="stacked", rows_at_once=usual.group.rows_at_once, notify=lines.append)
    assert again.group.rows_at_once == usual.group.rows_at_once, "what a run was begun with is what it goes on with"


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    run = trainer(*arguments("fedavg", "sgd"), engine="stacked", model=Cramped(rows=2, error=RuntimeError("something else")))
    with pytest.raises(RuntimeError, match="something else"):
        run.run_round()
