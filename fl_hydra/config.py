"""The configuration that Hydra composes, with checks of single keys.

Nothing here imports torch, so that `--help`, completion and the answer to a finished run are quick.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from fl_hydra.algorithms.base import Algorithm, algorithms
from fl_hydra.data.dataset import Dataset, datasets
from fl_hydra.errors import UserError, require
from fl_hydra.local_steps.base import LocalSteps, local_step_rules
from fl_hydra.models.base import Model, models
from fl_hydra.optim.base import Optimizer, optimizers
from fl_hydra.optim.outer import Outer, servers
from fl_hydra.optim.schedules import Scheduler, schedulers
from fl_hydra.participation.base import Participation, participations
from fl_hydra.paths import DATA, OUTPUTS
from fl_hydra.registry import Component, Registry
from fl_hydra.sharding.base import Sharding, shardings
from fl_hydra.speeds.base import Speeds, speed_models
from fl_hydra.tracking.trackers.base import Tracker, trackers
from fl_hydra.training.averages import SWA
from fl_hydra.training.engine_names import ENGINE_KINDS
from fl_hydra.training.precision import PRECISIONS
from fl_hydra.uplinks.base import Uplink, uplinks

REGISTRIES: tuple[Registry[Any], ...] = (
    datasets,
    models,
    optimizers,
    servers,
    schedulers,
    algorithms,
    local_step_rules,
    shardings,
    participations,
    speed_models,
    uplinks,
    trackers,
)

SIZES = ("smoke", "short", "full")
STATE_ON = ("auto", "device", "cpu", "disk")
MOST = 10**9
"""The largest whole number of anything but a seed."""
LARGEST = 1e30
"""The largest other number: the largest in fp32 is 3e38."""


PERSONAL = ("dealt", "shards")


@dataclass
class Evaluation:
    """When a run is evaluated, and on what."""

    points: int = 50
    """Evaluations, equally spaced in the budget, and one at the end. Each takes place at the end of a round."""
    final: float = 1.0
    """Fraction of the validation and test samples in the last evaluation. They are the first ones of an order that never changes."""
    test: bool = True
    """Whether the test set is evaluated. Trials of a search leave it alone."""
    personal: str | None = None
    """dealt, shards or null. What clients are judged on: their shares of the validation and test sets, or parts of their shards, which are
    withheld from training; null: dealt, where the method has models of clients. docs/personalised.md."""
    shard_part: float = 0.2
    """Fraction of each shard that personal=shards withholds. Half of it is for validation, and half for test."""
    joining_steps: int = 20
    """Local steps of held-out clients before they are judged. They join with them (`participation.held_out`)."""

    def __post_init__(self) -> None:
        require(self.points >= 1, f"evaluation.points={self.points}: at least 1 is needed")
        require(0 < self.final <= 1, f"evaluation.final={self.final}: a fraction above 0 and at most 1 of the validation and test samples")
        require(
            self.personal is None or self.personal in PERSONAL,
            f"evaluation.personal={self.personal}: choose dealt or shards, or null, with which the method decides",
        )
        require(
            0 < self.shard_part < 1,
            f"evaluation.shard_part={self.shard_part}: a fraction above 0 and below 1 of each shard is needed",
        )
        require(self.joining_steps >= 0, f"evaluation.joining_steps={self.joining_steps}: must be 0 steps or more")


@dataclass
class Checkpoint:
    """How often a run is saved; not part of its identity."""

    seconds: float = 60.0
    """Seconds between checkpoints, which are written at the end of a round. 0: after every round."""

    def __post_init__(self) -> None:
        require(self.seconds >= 0, f"checkpoint.seconds={self.seconds}: must be 0 (every round) or more")


@dataclass
class Tune:
    """How a search trains; not part of a run's identity."""

    seeds: list[int] = field(default_factory=lambda: [100])
    """Seeds of each trial of a search. Its value is their mean; choose other seeds than those that are reported."""

    def __post_init__(self) -> None:
        require(bool(self.seeds), "tune.seeds=[]: at least 1 seed is needed for a trial")
        require(len(set(self.seeds)) == len(self.seeds), f"tune.seeds={self.seeds}: a seed is named twice")


@dataclass
class Config:
    """The keys of a run. `K`, `C`, `J` and the budget default to the algorithm's; the `K` of clients to the dataset's users, if any."""

    dataset: Dataset = MISSING
    """The samples; a dataset also chooses a model."""
    model: Model = MISSING
    """The model that is trained."""
    optimizer: Optimizer = MISSING
    """The local optimizer, which takes the steps of each worker or client."""
    server: Outer = MISSING
    """The outer optimizer, which steps along the pseudo-gradient, old model minus new; by default the mean is taken as it is."""
    scheduler: Scheduler = MISSING
    """How the learning rate changes over the budget."""
    algorithm: Algorithm = MISSING
    """The method; it also chooses an optimizer, a scheduler and so on, where the command line does not."""
    local_steps: LocalSteps = MISSING
    """How many local steps each round has."""
    sharding: Sharding = MISSING
    """How the training samples are divided among workers or clients."""
    participation: Participation = MISSING
    """Which clients take part in a round."""
    speeds: Speeds = MISSING
    """How fast workers are, on a simulated clock."""
    uplink: Uplink = MISSING
    """How what clients send is compressed, or made private, on its way to the server."""
    tracker: Tracker = MISSING
    """Who follows runs while they train; does not change a run's result."""

    K: int | None = None
    """Workers or clients; null: the algorithm's default, or one per user."""
    C: float | None = None
    """Fraction of the clients in a round; null: the algorithm's default."""
    J: int | None = None
    """Local steps (mini-batches) in a round; null: the algorithm's default. Epochs are not counted in J."""
    N_c: int | None = None
    """Classes per client, for sharding=classes."""
    gamma: float | None = None
    """Concentration for participation=skewed; the lower, the more skewed."""
    batch_size: int = 64
    """Samples of one local step of one worker."""
    data_parallel: int = 1
    """Workers that share each step of centralized training. Averaging their gradients is charged as communication."""
    epochs: float | None = None
    """Budget in passes over the training set. If epochs, rounds and samples are all null: 150 epochs, or
    5,120,000 samples for federated methods."""
    rounds: int | None = None
    """Budget in rounds, instead."""
    samples: int | None = None
    """Budget in training samples, instead."""
    seed: int = 0
    """Determines shards, initial weights, cohorts and batches."""
    split_seed: int = 0
    """Determines the validation split."""
    noise_scale: bool = False
    """Whether to measure the gradient noise scale in each round. The one more averaged gradient that this takes is charged."""
    precision: str = "fp32"
    """fp32, tf32, bf16, fp16 or fp64. Under tf32, bf16 and fp16, weights and averages stay in fp32."""
    evaluation: Evaluation = field(default_factory=Evaluation)
    swa: SWA = field(default_factory=SWA)

    objective: str = "val/acc"
    """What a search optimises. val/acc, val/loss, train/acc, train/loss, the cost of reaching a validation accuracy (bytes@0.5), or
    two of them joined by +."""
    tune: Tune = field(default_factory=Tune)

    engine: str = "auto"
    """auto, loop, stacked, im2col, graph, graph-im2col or graph-loop. How gradients are computed: docs/performance.md."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    state_on: str = "auto"
    """auto, device, cpu or disk. Where what a method keeps for its clients is held between their rounds; changes no result."""
    threads: int | None = None
    """CPU threads; null: one per core."""
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    until: float | None = None
    """Fraction of the budget after which a run pauses, at an evaluation. The same command without it continues the run."""
    data: str = str(DATA)
    """Folder of the datasets, taken as typed."""
    outputs: str = str(OUTPUTS)
    """Folder of runs and reports, taken as typed."""
    section: str | None = None
    """Section of the report that the run belongs to. Letters, digits, `_` and `-`."""
    size: str = "full"
    """Size of a section: smoke (seconds), short (one seed) or full."""
    dry_run: bool = False
    """Only print what would run, and what time and disk it takes here."""
    study: str | None = None
    """Study that the run is a trial of, for its tracker. Set by searches."""
    resume: str | None = None
    """wandb: continue from W&B's checkpoint where that is the newer one."""
    tuned: str | None = None
    """Section or study whose best values are used where none are typed."""
    chosen: dict[str, Any] = field(default_factory=dict)
    """What `tuned` has filled in, and from which study. Not typed; for readers of config.yaml."""

    def __post_init__(self) -> None:
        for registry in REGISTRIES:
            part = getattr(self, registry.group)
            require(
                registry.get(part.name) is type(part),
                f"{registry.group}.name={part.name}: a name cannot be changed alone; choose with {registry.group}=",
            )
        _one_of("precision", self.precision, tuple(PRECISIONS))
        _one_of("engine", self.engine, ("auto", *ENGINE_KINDS))
        _one_of("state_on", self.state_on, STATE_ON)
        _one_of("size", self.size, SIZES)
        require(
            self.device in ("auto", "cpu", "cuda") or (self.device.startswith("cuda:") and self.device[5:].isdigit()),
            f"device={self.device}: choose auto, cpu, cuda or cuda:N",
        )
        require(self.batch_size >= 1, f"batch_size={self.batch_size}: at least 1 sample is needed in a batch")
        require(self.data_parallel >= 1, f"data_parallel={self.data_parallel}: at least 1 worker is needed for a step")
        require(self.threads is None or 1 <= self.threads <= 1024, f"threads={self.threads}: 1 to 1,024 are possible; null takes all cores")
        require(
            self.until is None or 0 < self.until < 1,
            f"until={self.until}: a fraction of the budget, above 0 and below 1, at which the run pauses; null trains it to the end",
        )
        require(self.gamma is None or self.gamma > 0, f"gamma={self.gamma}: the concentration must be greater than 0")
        require(self.N_c is None or self.N_c >= 1, f"N_c={self.N_c}: every client needs at least 1 class")
        require(
            self.resume in (None, "wandb"),
            f"resume={self.resume}: choose wandb, which continues from a newer checkpoint there; one in outputs is used in any case",
        )
        require(
            self.resume is None or self.tracker.name == "wandb",
            f"resume={self.resume}: add tracker=wandb, and tracker.project for the project",
        )
        for name in ("section", "tuned"):
            value = getattr(self, name)
            require(
                value is None or bool(re.fullmatch(r"[A-Za-z0-9_-]{1,100}", value)),
                f"{name}={value}: at most 100 letters, digits, _ and - are allowed",
            )
        self.data, self.outputs = _folder("data", self.data), _folder("outputs", self.outputs)
        require(
            self.data == str(DATA) or Path(self.data).is_dir(),
            f"data={self.data}: there is no such folder; make it first, to have data downloaded there, or leave data out for {DATA}",
        )
        budgets = {name: getattr(self, name) for name in ("epochs", "rounds", "samples") if getattr(self, name) is not None}
        given = " and ".join(f"{name}={value}" for name, value in budgets.items())
        require(len(budgets) <= 1, f"{given}: two budgets; give one of epochs, rounds and samples")
        for name, value in budgets.items():
            require(0 < value <= MOST, f"{name}={value:.6g}: the budget must be greater than 0 and at most 1,000,000,000")
        for name in ("seed", "split_seed"):
            require(0 <= getattr(self, name) < 2**63, f"{name}={getattr(self, name)}: must be 0 or more and below 2^63")
        _refuse_huge(self)

    @property
    def parts(self) -> dict[str, Component]:
        """The chosen option of each group."""
        return {registry.group: getattr(self, registry.group) for registry in REGISTRIES}


def _refuse_huge(part: Any, prefix: str = "") -> None:
    """Refuse numbers that nobody means and that tensors do not hold: counts above a billion, others beyond the range of fp32."""
    for name, value in vars(part).items():
        if dataclasses.is_dataclass(value):
            _refuse_huge(value, f"{name}.")
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int) and "seed" not in name:
                require(abs(number) <= MOST, f"{prefix}{name}={number}: at most {MOST:,} is allowed")
            elif isinstance(number, float) and math.isfinite(number):
                require(abs(number) <= LARGEST, f"{prefix}{name}={number:g}: at most {LARGEST:g} is allowed, as fp32 holds no more")


def _one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    require(value in allowed, f"{key}={value}: choose {', '.join(allowed[:-1])} or {allowed[-1]}")


def _folder(key: str, typed: str) -> str:
    """A folder as it was typed, with `~` expanded.

    Raises:
        UserError: it cannot be a folder.
    """
    require(bool(typed), f"{key}=: a folder is needed; leave {key} out for the project's own")
    try:
        path = Path(typed).expanduser()
        nearest = next((part for part in (path, *path.parents) if os.path.lexists(part)), path)
    except (OSError, RuntimeError) as error:
        raise UserError(f"{key}={typed}: {error}; choose another folder") from error
    require(not nearest.exists() or nearest.is_dir(), f"{key}={typed}: {nearest} is not a folder; choose another")
    return str(path)


def check_device(device: str, engine: str = "auto") -> None:
    """Refuse a GPU that is not there, and graphs without one; imports torch only if there is something to check.

    Raises:
        UserError: naming what works.
    """
    graphs = engine.startswith("graph")
    if device.startswith("cuda") or graphs:
        import torch

        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        number = int(device[5:] or 0) if device.startswith("cuda") else 0
        require(
            device in ("auto", "cpu") or number < count,
            f"device={device}: this machine has {count} CUDA devices; use device=auto or device=cpu",
        )
        require(
            not graphs or (device != "cpu" and count > 0),
            f"engine={engine}: CUDA graphs need a CUDA device; choose engine=auto, loop, stacked or im2col",
        )
