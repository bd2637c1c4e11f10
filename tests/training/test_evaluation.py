"""Evaluation."""

from __future__ import annotations

from tests.support.make import trainer


def test_without_a_validation_set_there_are_no_validation_figures() -> None:
    run = trainer("epochs=1", "dataset.validation=0", "dataset.flip=true")
    run.run_round()
    (row,) = run.evaluate()
    assert (row["val/loss"], row["val/acc"]) == (None, None)
    assert row["test/acc"] is not None
