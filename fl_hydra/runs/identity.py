"""What a run is: its resolved configuration. A hash of the part that changes the result names its directory."""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from fl_hydra.registry import Component
from fl_hydra.training.experiment import Experiment


def describe(experiment: Experiment) -> dict[str, Any]:
    """The part of a run's configuration that changes its result, as plain values.

    Irrelevant keys are null, as the experiment holds only what is read; each component carries its version, and the data
    their fingerprint. Where, how fast and under whose eyes a run trains is not part of it.
    """
    described: dict[str, Any] = {}
    for field in fields(experiment):
        value = getattr(experiment, field.name)
        if isinstance(value, Component):
            described[field.name] = {**value.identity(), "version": value.version}
        elif field.name == "card":
            described["fingerprint"] = value.fingerprint
        elif field.name != "data":
            described[field.name] = value
    return described


def run_hash(experiment: Experiment) -> str:
    """Ten hex digits of the SHA-256 over :func:`describe`."""
    text = json.dumps(describe(experiment), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def run_folder(experiment: Experiment, outputs: Path) -> Path:
    """Where a run lives: readable first, unique by the hash."""
    e = experiment
    numbers = [] if e.K == 1 else [f"K{e.K}", *([f"C{e.m / e.K:g}"] if e.m != e.K else []), f"J{e.J}"]
    skew = [f"Nc{e.N_c}"] if e.N_c is not None else [e.sharding.tag] if e.sharding.tag else []
    scheme = e.participation.name
    dropout = [f"drop{e.participation.dropout:g}"] if e.participation.dropout else []
    who = [f"gamma{e.gamma:g}"] if e.gamma is not None else [] if scheme in ("all", "uniform") else [scheme]
    name = "-".join([*numbers, *skew, *who, *dropout, f"B{e.batch_size}", f"s{e.seed}", run_hash(e)])
    return outputs / e.dataset.name / e.algorithm.name / name
