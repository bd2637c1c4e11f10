"""A run's identity: its resolved configuration. A hash of the part that changes the result names its directory."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

from fl_hydra.algorithms.events import EventDriven
from fl_hydra.algorithms.localsgd import LocalSGD
from fl_hydra.registry import Component, records
from fl_hydra.training.experiment import Experiment


def describe(experiment: Experiment) -> dict[str, Any]:
    """The part of a run's configuration that changes its result, as plain values.

    Irrelevant keys are null, as the experiment holds only what is read; each component carries its version, and the data
    their fingerprint. Fields that came later are there only where they are not as before (:func:`fl_hydra.registry.as_before`), and
    revisions only where there are any, so that runs made before them keep their names. Where and how fast a run
    trains, and who tracks it, is not part of it.
    """
    described: dict[str, Any] = {}
    for field in fields(experiment):
        value = getattr(experiment, field.name)
        if isinstance(value, Component):
            described[field.name] = {**_changed(value.identity(), type(value)), "version": value.version}
        elif field.name == "architectures":
            described[field.name] = tuple({**_changed(each.identity(), type(each)), "version": each.version} for each in value)
        elif field.name == "dataset_info":
            described["fingerprint"] = value.fingerprint
        elif field.name != "data":
            described[field.name] = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
    described = _changed(described, type(experiment))
    revisions = revisions_of(experiment)
    return {**described, "revisions": revisions} if revisions else described


def _changed(values: dict[str, Any], cls: type[Any]) -> dict[str, Any]:
    """These values of a dataclass without those of later fields that are as before."""
    before = records(cls)
    return {name: value for name, value in values.items() if name not in before or value != before[name]}


def revisions_of(experiment: Experiment) -> dict[str, int]:
    """Fixes that change the results of some runs only: the present revision of each, from 2, by its name.

    The version of a component would rename every run that has it. A revision belongs here, and is returned only where it can change
    the result, so that all other runs keep their names. It should not depend on the seed, over which the report takes means; `sharding`
    may, where draws of some seeds alone divide the samples, which no setting that was tried has shown.
    """
    e = experiment
    mended = {
        "sharding": e.sharding.revised(e.sample_counts, e.K, e.N_c, e.seed),  # divided in another way
        "cut_steps": _ends_within_a_batch(experiment),  # a step of b of B samples takes b / B of the rate
        "mean_rate": _divides_by_changing_rates(experiment),  # SlowMo divides by the mean rate of a round
        "one_message": _sends_momentum(experiment),  # a model and what goes with it are one message, where they were two
        "counted_loss": experiment.local_steps.name == "loss"
        and experiment.dataset_info.everywhere,  # a loss is over the targets there are
        "shares": experiment.personalised
        and experiment.personal != "shards"
        and not _judges_users(experiment),  # ties are no longer the first clients'
        "own_shares": _judges_users(experiment),  # users of a text are judged on their own samples, no longer on those of any
    }
    return {name: 2 for name, applies in mended.items() if applies}


def _judges_users(e: Experiment) -> bool:
    """Whether clients that are users of a text are judged on what they hold of the validation and test sets."""
    return e.personalised and e.personal != "shards" and e.dataset_info.textual and e.sharding.name == "natural" and e.K > 1


def _ends_within_a_batch(e: Experiment) -> bool:
    """Whether the budget may leave some step with fewer samples than a batch."""
    if e.local_steps.spread:  # rows take different numbers of steps, so that a cut round may cut any of them
        return e.round_samples is None or e.budget % e.round_samples != 0
    together = 1 if isinstance(e.algorithm, EventDriven) else e.m  # events end with one worker, rounds are divided among all rows
    return e.budget % (together * e.step_samples) != 0


def _divides_by_changing_rates(e: Experiment) -> bool:
    """Whether the outer step divides by the local rate, and that may change within a round."""
    changes = e.scheduler.name != "constant" or e.scheduler.warmup > 0
    several = e.J != 1 or not e.local_steps.steady
    return e.server.divides_by_rate and not e.server.averages and changes and several


def _sends_momentum(e: Experiment) -> bool:
    """Whether workers send the state of their optimizers with their models."""
    return isinstance(e.algorithm, LocalSGD) and e.algorithm.momentum == "average" and "row" in e.optimizer.slots.values() and e.m > 1


def by_key(described: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """What :func:`describe` says, with keys as they are typed: `optimizer.lr`."""
    typed: dict[str, Any] = {}
    for key, value in described.items():
        typed |= by_key(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return typed


def run_hash(experiment: Experiment) -> str:
    """Ten hex digits of the SHA-256 over :func:`describe`."""
    return hash_of(describe(experiment))


def hash_of(described: dict[str, Any]) -> str:
    """The hash of the run that :func:`describe` says this of; what has been through a file has the same one."""
    text = json.dumps(described, sort_keys=True, separators=(",", ":"))
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
