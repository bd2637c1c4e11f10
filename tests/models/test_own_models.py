"""A model of one's own, from Python, as the page has it."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fl_hydra
from fl_hydra.errors import UserError
from fl_hydra.models.base import Model, models
from fl_hydra.schema import register_schema
from fl_hydra.training.trainer import Trainer
from tests.support.make import PROJECT, experiment


@pytest.fixture
def guests() -> Iterator[None]:
    """What a test registers is gone afterwards."""
    before = dict(models._load())
    yield
    models._classes = before
    register_schema()


@pytest.mark.usefixtures("guests")
def test_what_the_page_registers_is_an_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (PROJECT / "docs" / "own-models.md").read_text().split("## From Python")[1]
    (code,) = re.findall(r"```python\n(.*?)```", page, re.S)
    given: list[tuple[str, ...]] = []
    train = fl_hydra.run

    def run(*words: str) -> Any:
        given.append(words)
        return train(*words, "threads=1", "evaluation.points=1", outputs=tmp_path, quiet=True)

    monkeypatch.setattr(fl_hydra, "run", run)
    script = ModuleType("script")
    monkeypatch.setitem(sys.modules, "script", script)
    exec(compile(code, "script", "exec"), script.__dict__)
    assert script.run.status == "finished" and script.run.config["model"]["width"] == 16
    assert script.run.metrics["test/acc"][-1] > 0.7
    assert train(*given[0], "threads=1", "evaluation.points=1", outputs=tmp_path, quiet=True).folder == script.run.folder
    with pytest.raises(UserError, match=r"did you mean 'model=pair'\?|did you mean model=pair\?"):
        fl_hydra.run("model=pairs")


class Branching(nn.Module):
    """Looks at values."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(256, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.head(inputs.flatten(1))
        return logits if bool((logits.sum() > torch.inf).item()) else 2 * logits


class BranchingModel(Model):
    def build(self, info: Any) -> nn.Module:
        return Branching()


def test_a_module_that_looks_at_values_trains_row_by_row() -> None:
    made = experiment("algorithm=fedavg", "K=4", "C=0.5", "J=1", "rounds=1", model=BranchingModel(name="branching"))
    Trainer(made, engine="loop").run_round()
    with pytest.raises(UserError, match=r"cannot be computed in one call .*choose engine=loop"):
        Trainer(made, engine="stacked").run_round()
