"""A run's name: what is added or mended later leaves earlier runs where they are."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import pytest

from fl_hydra.algorithms.fedavg import FedAvg
from fl_hydra.config import REGISTRIES
from fl_hydra.optim.sgdm import SGDM
from fl_hydra.registry import as_before, records
from fl_hydra.report.runs import Run, by_setting
from fl_hydra.runs import identity
from fl_hydra.runs.identity import describe, run_hash
from fl_hydra.training.experiment import Experiment
from tests.support.make import experiment, write_shakespeare

NAMES = {
    "algorithm=centralized samples=64000": "d7babe9fa0",
    "algorithm=centralized optimizer=lars scheduler=large_batch_cosine batch_size=1024 data_parallel=8 samples=102400 seed=3": "c2ba270b7e",
    "algorithm=centralized optimizer=lamb scheduler=large_batch batch_size=256 samples=25600 split_seed=2 precision=bf16": "2c00a9fd00",
    "algorithm=localsgd K=8 J=16 rounds=30": "b779cf0eea",
    "algorithm=localsgd K=4 J=8 rounds=30 optimizer=adamw scheduler=cosine scheduler.warmup=0.1 server=adam": "879dfe1c00",
    "algorithm=localsgd K=4 J=16 local_steps=linear samples=65536 noise_scale=true": "aaecf20647",
    "algorithm=localsgd K=4 J=16 local_steps=doubling samples=65536 optimizer=nadam": "5ea2d4c81b",
    "algorithm=localsgd K=4 J=16 local_steps=noise samples=65536 evaluation.points=20": "0d10244dca",
    "algorithm=post_local K=4 J=8 samples=65536": "c2c728191e",
    "algorithm=hierarchical K=4 rounds=20 server=nesterov": "61a68d71f8",
    "algorithm=slowmo K=4 J=8 rounds=20 scheduler=constant": "de9625b2dc",
    "algorithm=diloco K=4 J=16 rounds=20 optimizer.clip=1": "acc62f0ae9",
    "algorithm=lookahead rounds=50": "021ff50967",
    "algorithm=gossip K=8 rounds=20 algorithm.topology=exponential": "f27da90899",
    "algorithm=gossip_pga K=4 J=8 rounds=20 scheduler=step": "ddd12db13a",
    "algorithm=gossip_aga K=4 J=8 samples=65536": "5070a14cbf",
    "algorithm=ad_psgd K=4 rounds=20 speeds=stragglers": "c306527ee4",
    "algorithm=a2cid2 K=4 rounds=20": "d275354435",
    "algorithm=async_sgd K=4 rounds=50 algorithm.delay=0.5": "d3d36bb605",
    "algorithm=staleness_aware K=4 rounds=50 speeds=lognormal": "f49abd1895",
    "algorithm=easgd K=4 rounds=20 speeds=linear": "a77f16dd60",
    "algorithm=shat K=4 rounds=20": "94eb6edcd1",
    "algorithm=fedavg rounds=100": "5b9c6e8530",
    "algorithm=fedavg K=20 C=0.2 rounds=30 sharding=classes N_c=2 server.momentum=0.9": "d705f0349d",
    "algorithm=fedavg K=20 C=0.2 rounds=9 sharding=dirichlet sharding.alpha=0.1 participation=skewed gamma=1 optimizer=sgdm": "0044ac68d5",
    "algorithm=fedavg K=10 C=0.2 rounds=9 sharding=dirichlet_classes participation=power_of_choice participation.dropout=0.1": "ee9d438feb",
    "algorithm=fedavg K=20 C=0.2 rounds=30 sharding=quantity participation=oort server=adagrad": "495efa6a51",
    "algorithm=fedavg K=20 C=0.2 rounds=30 participation=fedcor precision=fp64": "2f93a749fa",
    "algorithm=fedavg K=20 C=0.2 rounds=30 participation=importance optimizer=rmsprop": "589aa12e60",
    "algorithm=fedavg K=20 C=0.2 rounds=30 participation=afl batch_size=16": "1377640be2",
    "algorithm=fedavg K=20 C=0.2 rounds=30 participation=cyclic N_c=3": "603935e63f",
    "algorithm=fedavg K=20 C=0.2 rounds=30 participation=diurnal scheduler=polynomial": "c30924b67a",
    "dataset=cifar100 algorithm=centralized samples=6400": "8f8380d48c",
    "dataset=cifar100 algorithm=fedavg K=10 C=0.2 rounds=20 sharding=classes N_c=20": "b6ebf81132",
    "dataset=cifar100 algorithm=localsgd K=4 rounds=20 model=small dataset.validation=0.2": "3e643091ea",
    "dataset=shakespeare dataset.users=6 dataset.min_samples=100 algorithm=fedavg C=0.5 rounds=20": "0d296329dd",
    "dataset=shakespeare_sequences dataset.users=6 dataset.min_samples=1 algorithm=localsgd K=6 rounds=20": "9c8bbed105",
}
"""Names of the first release. A test here that fails says that users' finished runs would be trained again: write a record
(`fl_hydra.registry.as_before`) for a new field, a revision (`fl_hydra.runs.identity`) for what changes some runs' results; only what
changes the results of every run that has a part raises the version of that part, and then the names here."""

RECORDS: dict[str, Any] = {
    "Experiment.uplink": {"name": "none", "version": 1},
    "Experiment.final": 1.0,
    "Experiment.test": True,
    "Experiment.swa": None,
    "Experiment.personal": None,
    "Experiment.shard_part": None,
    "Experiment.joining_steps": None,
    "Experiment.architectures": (),
    "Participation.held_out": None,
    "Model.statistics": "averaged",
    "Model.frozen_after": 0.5,
    "NormalisedModel.norm": "none",
    "NormalisedModel.groups": 2,
}
"""What means "as before" in fields that came later, by class and field. New ones are added; a line here is never changed."""


@pytest.fixture(scope="module")
def files(data: Path) -> Path:
    """CIFAR-100 and Shakespeare, both small."""
    write_shakespeare(data)
    return data


@pytest.mark.parametrize("overrides", NAMES)
def test_earlier_runs_keep_their_names(overrides: str, files: Path) -> None:
    assert run_hash(experiment(*overrides.split(), f"data={files}")) == NAMES[overrides]


def test_records_are_never_changed() -> None:
    classes: list[type[Any]] = [Experiment, *(part for registry in REGISTRIES for part in registry.values())]
    found: dict[str, Any] = {}
    for cls in classes:
        for name, value in records(cls).items():
            *_, owner = (base for base in cls.__mro__ if "as_before" in getattr(_own(base, name), "metadata", {}))
            found[f"{owner.__name__}.{name}"] = value
    assert found == RECORDS


def _own(cls: type[Any], name: str) -> Any:
    return cls.__dict__.get("__dataclass_fields__", {}).get(name)


@dataclass
class Later(FedAvg):
    """FedAvg with fields that came later; `mu` has another default than what trains as before."""

    mu: float = field(default=0.5, metadata=as_before(0.0))
    clip: float | None = field(default=None, metadata=as_before(None))
    layers: list[int] = field(default_factory=list, metadata=as_before([]))


@dataclass
class Latest(Later):
    """Another default for an inherited field, which the record of the base class still is about."""

    mu: float = 0.9


@pytest.mark.parametrize("cls", [Later, Latest])
def test_a_later_field_is_left_out_of_the_name_only_where_it_is_as_before(cls: type[Later]) -> None:
    old = experiment("algorithm=fedavg")
    assert run_hash(replace(old, algorithm=cls(mu=0.0))) == run_hash(old)
    later = [cls(), cls(mu=0.1), cls(mu=0.0, clip=1.0), cls(mu=0.0, layers=[1])]
    assert len({run_hash(replace(old, algorithm=part)) for part in later} | {run_hash(old)}) == 5
    assert "clip" not in describe(replace(old, algorithm=cls()))["algorithm"]


def test_a_later_field_without_effect_is_left_out_too() -> None:
    @dataclass
    class Part(SGDM):
        ramp: float = field(default=0.0, metadata=as_before(0.0))

        def identity(self) -> dict[str, Any]:
            return {**super().identity(), **({} if self.momentum else {"ramp": 0.0})}

    old = experiment("algorithm=fedavg", "optimizer=sgdm", "optimizer.momentum=0")
    part = Part(**{field.name: getattr(old.optimizer, field.name) for field in fields(old.optimizer)}, ramp=0.3)
    assert run_hash(replace(old, optimizer=part)) == run_hash(old)
    assert run_hash(replace(old, optimizer=replace(part, momentum=0.9))) != run_hash(
        replace(old, optimizer=replace(part, momentum=0.9, ramp=0))
    )


def test_later_fields_and_groups_of_the_experiment_are_left_out_too() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Longer(Experiment):
        extra: float = field(default=1.0, metadata=as_before(1.0))
        second: SGDM = field(default_factory=SGDM, metadata=as_before(describe(experiment("optimizer=sgdm"))["optimizer"]))

    old = experiment("algorithm=fedavg")
    values = {field.name: getattr(old, field.name) for field in fields(old)}
    same = experiment("optimizer=sgdm").optimizer
    assert isinstance(same, SGDM)
    assert run_hash(Longer(**values, second=same)) == run_hash(old)
    assert describe(Longer(**values, second=same, extra=0.5))["extra"] == 0.5
    assert len({run_hash(Longer(**values, second=same, extra=extra)) for extra in (1.0, 0.5, 0.1)}) == 3
    assert run_hash(Longer(**values, second=replace(same, momentum=0.1))) != run_hash(old)


def test_a_revision_renames_only_the_runs_whose_results_it_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    of_two, of_three = experiment("algorithm=localsgd", "K=2", "rounds=9"), experiment("algorithm=localsgd", "K=3", "rounds=9")
    before = run_hash(of_two), run_hash(of_three)
    monkeypatch.setattr(identity, "revisions_of", lambda e: {"mean": 2} if e.K > 2 else {})
    assert run_hash(of_two) == before[0]
    assert run_hash(of_three) != before[1]
    assert "revisions" not in describe(of_two)
    second = run_hash(of_three)
    monkeypatch.setattr(identity, "revisions_of", lambda e: {"mean": 3} if e.K > 2 else {})
    assert run_hash(of_two) == before[0]
    assert run_hash(of_three) not in (before[1], second)


def test_the_report_reads_runs_from_before_a_field_and_keeps_revisions_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    old = experiment("algorithm=fedavg")
    runs = [Run(Path("nowhere"), describe(e), [{}], "finished") for e in (old, replace(old, algorithm=Later(mu=0.0), seed=1))]
    runs.append(Run(Path("nowhere"), describe(replace(old, algorithm=Later(mu=0.2))), [{}], "finished"))
    monkeypatch.setattr(identity, "revisions_of", lambda e: {"mean": 2})
    runs.append(Run(Path("nowhere"), describe(old), [{}], "finished"))
    label = "FedAvg K=100 C=0.1 J=4, iid"
    assert [(name, len(group)) for name, group in by_setting(runs)] == [
        (label, 2),
        (f"{label}, algorithm.mu=0.2", 1),
        (f"{label}, revisions.mean=2", 1),
    ]
