"""Networks of timm."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fl_hydra.errors import UserError
from fl_hydra.models.timm import Timm
from fl_hydra.runs.identity import describe, run_hash
from fl_hydra.training.trainer import Trainer
from tests.support.make import experiment
from tests.support.small import composed

WORDS = ("algorithm=fedavg", "K=5", "C=0.6", "J=2", "samples=31", "optimizer=sgd", "optimizer.lr=0.05")


@pytest.mark.parametrize(("architecture", "head"), [("test_resnet", "fc"), ("test_vit", "head")])
def test_engines_agree(architecture: str, head: str) -> None:
    """On one with BatchNorm, and on one with attention."""
    runs = [Trainer(replace(composed(*WORDS), model=Timm(architecture=architecture)), engine=engine) for engine in ("loop", "stacked")]
    assert runs[0].group.layout.head == head
    while not runs[0].finished:
        for run in runs:
            run.run_round()
    torch.testing.assert_close(runs[1].state.model, runs[0].state.model, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("architecture", "line"),
    [
        ("test_resnt", "timm .* has no such network; did you mean test_resnet"),
        ("deit_tiny_distilled_patch16_224", "does not end with one linear layer"),
        ("vit_small_patch32_224", "timm cannot make it for images of 16x16 pixels|its forward pass ends with"),
        ("test_convnext", "its forward pass ends with RuntimeError: Calculated padded input size"),
        ("nf_regnet_b0", "its forward pass ends with ValueError: F.batch_norm takes statistics"),
    ],
)
def test_what_does_not_work_is_one_line(architecture: str, line: str) -> None:
    with pytest.raises(UserError, match=line) as caught:
        Trainer(replace(composed(*WORDS), model=Timm(architecture=architecture)), engine="loop")
    assert "\n" not in str(caught.value)


def test_its_name_and_the_version_of_timm_are_in_the_runs_name(monkeypatch: pytest.MonkeyPatch) -> None:
    made = experiment("algorithm=fedavg", "model=timm")
    assert describe(made)["model"]["architecture"] == "resnet18"
    assert run_hash(experiment("algorithm=fedavg", "model=timm", "model.architecture=vit_tiny_patch16_224")) != run_hash(made)
    before = run_hash(made)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "9.9")
    assert run_hash(made) != before


def test_without_timm_it_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="the package timm is not installed"):
        experiment("algorithm=fedavg", "model=timm")
