"""Rows and batches that are divided where memory is short."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fl_hydra.training.engines import CPU_GRADIENT_BATCH, StackedEngine
from fl_hydra.training.rows import Batch
from fl_hydra.training.trainer import Trainer
from tests.support.engines import arguments
from tests.support.make import experiment, trainer


def test_chunked_rows_equal_whole_ones() -> None:
    """Blocks of two rows, as where no more fit, give the round of five together; so do the parts of a call after memory ran out."""
    settings = arguments("localsgd", "sgdm", "precision=fp64", "K=5")
    whole = trainer(*settings, engine="stacked")
    blocks = Trainer(experiment(*settings), engine="stacked", rows_at_once=2)
    assert [block.rows.stop - block.rows.start for block in blocks.group.division.blocks[0]] == [1, 2, 2]

    lines: list[str] = []
    short = Trainer(experiment(*settings), engine="stacked", notify=lines.append)
    engine = short.group.engine
    assert isinstance(engine, StackedEngine)
    for method, rows_of in (("_own_gradient", lambda args: len(args[0])), ("_shared_gradient", lambda args: len(args[2]))):
        original = getattr(engine, method)

        def limited(*args: Any, original: Any = original, rows_of: Any = rows_of) -> Any:
            if rows_of(args) > 2:
                raise torch.OutOfMemoryError("made up")
            return original(*args)

        setattr(engine, method, limited)
    for run in (whole, blocks, short):
        while not run.finished:
            run.run_round()
    assert lines == ["5 rows at once do not fit into memory; going on with 3", "3 rows at once do not fit into memory; going on with 2"]
    for run in (blocks, short):
        torch.testing.assert_close(run.state.model, whole.state.model, rtol=1e-12, atol=1e-12)
        assert run.member.computed == whole.member.computed
        assert run.evaluate()[0]["train/loss"] == pytest.approx(float(whole.evaluate()[0]["train/loss"] or 0)) or run is short


@pytest.mark.parametrize("engine", ["loop", "stacked", "im2col"])
@pytest.mark.parametrize("settings", [("algorithm=centralized", "epochs=2"), ("algorithm=localsgd", "K=3", "J=2", "samples=700")])
def test_accumulated_batches_equal_whole_ones(engine: str, settings: tuple[str, ...]) -> None:
    """A batch in parts, asked for or found out when memory runs out, gives the gradient of all its samples, cut or not."""
    settings = (*settings, "batch_size=100", "precision=fp64")
    whole = trainer(*settings, engine=engine)
    parts = Trainer(experiment(*settings), engine=engine, samples_at_once=7)
    lines: list[str] = []
    short = Trainer(experiment(*settings), engine=engine, notify=lines.append)
    original = short.group.engine._gradient

    def limited(parameters: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        if batch.targets.shape[1] > 30:
            raise torch.OutOfMemoryError("made up")
        return original(parameters, batch)

    short.group.engine._gradient = limited  # type: ignore[method-assign]
    assert (whole.group.samples_at_once, parts.group.samples_at_once) == (100, 7)
    for run in (whole, parts, short):
        while not run.finished:
            run.run_round()
    assert short.group.samples_at_once == 25
    assert lines == [f"{size} samples at once do not fit into memory; going on with {size // 2}" for size in (100, 50)]
    expected = whole.evaluate()[0]
    for run in (parts, short):
        torch.testing.assert_close(run.state.model, whole.state.model, rtol=1e-12, atol=1e-12)
        assert run.member.computed == whole.member.computed
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
    run = trainer(*arguments("fedavg", "sgd"), engine="stacked")

    def broken(*args: Any) -> Any:
        raise RuntimeError("something else")

    run.group.engine._own_gradient = run.group.engine._shared_gradient = broken  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match="something else"):
        run.run_round()
