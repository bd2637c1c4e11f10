"""The configuration: what Hydra composes, checked, and resolved into an :class:`Experiment`.

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
from fl_hydra.algorithms.events import EventDriven
from fl_hydra.data.dataset import Dataset, datasets
from fl_hydra.data.population import Census
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
from fl_hydra.training.experiment import Experiment

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
    trackers,
)

PRECISIONS = ("fp32", "tf32", "bf16", "fp16", "fp64")
SIZES = ("smoke", "short", "full")
ENGINES = ("auto", "loop", "stacked", "im2col", "graph", "graph-im2col", "graph-loop")
MOST = 10**9
"""The largest whole number of anything but a seed."""
LARGEST = 1e30
"""The largest other number: the largest in fp32 is 3e38."""
DISTRIBUTED_EPOCHS = 150
FEDERATED_SAMPLES = 5_120_000


@dataclass
class Evaluation:
    """When a run is evaluated."""

    points: int = 50
    """Equally spaced in the budget; each falls on the first border of a round after it. The end is always one."""
    final: float = 1.0
    """Fraction of the validation and test samples that the last evaluation looks at: the first ones of an order that never changes."""
    test: bool = True
    """Whether the test set is looked at; runs that help to choose leave it alone."""

    def __post_init__(self) -> None:
        require(self.points >= 1, f"evaluation.points={self.points}: at least 1 is needed")
        require(0 < self.final <= 1, f"evaluation.final={self.final}: a fraction above 0 and at most 1 of the validation and test samples")


@dataclass
class Checkpoint:
    """How often a run can be gone back to; not part of its identity."""

    seconds: float = 60.0
    """A checkpoint is written at the first border of a round after this time."""

    def __post_init__(self) -> None:
        require(self.seconds >= 0, f"checkpoint.seconds={self.seconds}: must be 0 (every round) or more")


@dataclass
class Tune:
    """How a search trains; not part of a run's identity."""

    seeds: list[int] = field(default_factory=lambda: [100])
    """Of the runs of each trial, whose mean is its value: other seeds than those that are reported."""

    def __post_init__(self) -> None:
        require(bool(self.seeds), "tune.seeds=[]: at least 1 seed is needed for a trial")
        require(len(set(self.seeds)) == len(self.seeds), f"tune.seeds={self.seeds}: a seed is named twice")


@dataclass
class Config:
    """The keys of a run. `K`, `C`, `J` and the budget default to the algorithm's; the `K` of clients to the dataset's users, if any."""

    dataset: Dataset = MISSING
    model: Model = MISSING
    optimizer: Optimizer = MISSING
    server: Outer = MISSING
    scheduler: Scheduler = MISSING
    algorithm: Algorithm = MISSING
    local_steps: LocalSteps = MISSING
    sharding: Sharding = MISSING
    participation: Participation = MISSING
    speeds: Speeds = MISSING
    tracker: Tracker = MISSING

    K: int | None = None
    C: float | None = None
    J: int | None = None
    N_c: int | None = None
    gamma: float | None = None
    batch_size: int = 64
    data_parallel: int = 1
    epochs: float | None = None
    rounds: int | None = None
    samples: int | None = None
    seed: int = 0
    split_seed: int = 0
    noise_scale: bool = False
    precision: str = "fp32"
    evaluation: Evaluation = field(default_factory=Evaluation)

    objective: str = "val/acc"
    tune: Tune = field(default_factory=Tune)

    engine: str = "auto"
    device: str = "auto"
    threads: int | None = None
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    until: float | None = None
    data: str = str(DATA)
    outputs: str = str(OUTPUTS)
    section: str | None = None
    size: str = "full"
    dry_run: bool = False
    study: str | None = None
    resume: str | None = None
    tuned: str | None = None
    chosen: dict[str, Any] = field(default_factory=dict)
    """What `tuned` has put in, and on what grounds, for the reader of config.yaml; not typed."""

    def __post_init__(self) -> None:
        for registry in REGISTRIES:
            part = getattr(self, registry.group)
            require(
                registry.get(part.name) is type(part),
                f"{registry.group}.name={part.name}: a name cannot be changed alone; choose with {registry.group}=",
            )
        _one_of("precision", self.precision, PRECISIONS)
        _one_of("engine", self.engine, ENGINES)
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
            f"until={self.until}: a part of the budget, above 0 and below 1, after which the run pauses; null trains it to its end",
        )
        require(self.gamma is None or self.gamma > 0, f"gamma={self.gamma}: the concentration must be greater than 0")
        require(self.N_c is None or self.N_c >= 1, f"N_c={self.N_c}: every client needs at least 1 class")
        require(
            self.resume in (None, "wandb"),
            f"resume={self.resume}: choose wandb, which takes up a newer checkpoint from there; what is in outputs is always gone on with",
        )
        require(
            self.resume is None or self.tracker.name == "wandb",
            f"resume={self.resume}: which project it is in is said by tracker.project; add tracker=wandb",
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
    """A folder as it was typed, with `~` replaced.

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


def resolve(config: Config) -> Experiment:
    """Check the combination and work out every number; reads no more of the dataset than its card.

    Raises:
        UserError: one line that says what was wrong, what is allowed and what to do.
    """
    algorithm = config.algorithm
    J: int | None = _counted("J", config.J, algorithm.J, None, algorithm)
    require(J is None or J >= 1, f"J={J}: at least 1 local step is needed in a round")
    card = config.dataset.card(Path(config.data))
    census = config.dataset.census(card, config.split_seed)
    K: int = _counted("K", config.K, _clients(config, census), 1, algorithm)
    C: float = _counted("C", config.C, algorithm.C, 1.0, algorithm)
    algorithm.check(K, C)
    total = census.total
    config.model.check(card)
    require(total > 0, f"dataset.validation={config.dataset.validation}: no sample is left for training; choose a smaller fraction")
    require(config.batch_size <= total, f"batch_size={config.batch_size}: there are {total} training samples; choose 1 to {total}")
    N_c = config.N_c if "N_c" in config.sharding.uses else None
    config.sharding.check(census, K, N_c, config.seed)

    config.scheduler.check(config.batch_size)

    m = cohort(C, K)
    gamma = config.gamma if "gamma" in config.participation.uses else None
    config.participation.check(K, m, gamma)
    require(
        config.data_parallel == 1 or (K == 1 and not algorithm.federated and algorithm.synchronous),
        f"data_parallel={config.data_parallel}: shares the steps of centralized training among workers; workers of "
        f"algorithm={algorithm.name} step by themselves: leave it out, or choose algorithm=centralized",
    )
    require(
        config.data_parallel <= config.batch_size,
        f"data_parallel={config.data_parallel}: each worker needs a sample of a batch; choose 1 to batch_size={config.batch_size}",
    )
    require(
        algorithm.ends_with_mean or config.server.averages,
        f"algorithm={algorithm.name} ends a round without a mean, from which an outer optimizer could step; leave server out",
    )
    measured = config.local_steps.measures
    noise = config.noise_scale or "noise" in measured
    asks = "noise_scale=true" if config.noise_scale else f"local_steps={config.local_steps.name}"
    require(
        not (noise or "drift" in measured) or (m > 1 and algorithm.synchronous),
        f"{asks}: compares workers that begin a round with equal models and end it with their mean; "
        + (f"{m} worker in a round has no other: take more" if algorithm.synchronous else f"algorithm={algorithm.name} has no such rounds"),
    )
    require(
        "drift" not in measured or not algorithm.coupled,
        f"local_steps={config.local_steps.name}: workers of algorithm={algorithm.name} exchange models within a round, which hides how far "
        "they drift apart; choose another rule",
    )
    rule = config.local_steps
    same_steps = rule.steady and not rule.spread
    given = f"local_steps.spread={rule.spread}" if rule.steady else f"local_steps={rule.name}"
    leave_out = f"leave {given.split('=')[0]} out"
    require(J is not None or same_steps, f"{given}: algorithm={algorithm.name} has no J to choose; {leave_out}")
    require(
        not rule.spread or not algorithm.lockstep,
        f"local_steps.spread={rule.spread}: workers of algorithm={algorithm.name} take all J steps of a period, to be averaged after "
        "it; leave local_steps.spread out",
    )
    _check_participation(config.participation, algorithm, measured)
    require(
        m == K or config.participation.name != "all",
        f"C={C}: participation=all takes every client; choose participation=uniform or leave C out",
    )
    require(
        not isinstance(algorithm, EventDriven) or same_steps,
        f"{given}: in algorithm={algorithm.name} workers differ by speeds=; {leave_out}",
    )
    if algorithm.slowest < math.inf:
        speeds, how = config.speeds.draw(K, config.seed), config.speeds.differ_by
        times = float(speeds.max() / speeds.min())
        require(
            times <= algorithm.slowest,
            f"speeds.{how}={getattr(config.speeds, how, None)}: the slowest of K={K} workers is {times:.3g} times as slow as the fastest; "
            f"with algorithm={algorithm.name} at most {algorithm.slowest:,} times is allowed: choose speeds that differ less",
        )
    experiment = Experiment(
        dataset=config.dataset,
        card=card,
        model=config.model,
        optimizer=config.optimizer,
        server=config.server,
        scheduler=config.scheduler,
        algorithm=algorithm,
        local_steps=config.local_steps,
        sharding=config.sharding,
        participation=config.participation,
        speeds=config.speeds,
        K=K,
        m=m,
        J=J,
        N_c=N_c,
        gamma=gamma,
        batch_size=config.batch_size,
        data_parallel=config.data_parallel,
        budget=1,
        points=config.evaluation.points,
        final=config.evaluation.final,
        test=config.evaluation.test,
        noise_scale=noise,
        precision=config.precision,
        seed=config.seed,
        split_seed=config.split_seed,
        data=Path(config.data),
    )
    if config.samples is not None:
        budget = config.samples
    elif config.rounds is not None:
        whole = experiment.round_samples
        if whole is None:
            why = "local_steps.spread" if config.local_steps.steady else f"local_steps={config.local_steps.name}"
            raise UserError(
                f"rounds={config.rounds}: with {why} rounds differ in length, so their number is no budget; give epochs or samples"
            )
        budget = config.rounds * whole
    elif config.epochs is not None:
        budget = max(1, round(config.epochs * total))
    else:
        budget = FEDERATED_SAMPLES if algorithm.federated else DISTRIBUTED_EPOCHS * total
    if J is not None:
        rule.check(J, -(-budget // (m * experiment.step_samples)))
    return dataclasses.replace(experiment, budget=budget)


def _clients(config: Config, census: Census) -> int | None:
    """The number of clients or workers where none was given; None where the algorithm has no K."""
    return config.algorithm.K if census.users is None or not config.algorithm.federated else len(census.users)


def _check_participation(participation: Participation, algorithm: Algorithm, measured: frozenset[str]) -> None:
    """Refuse what a scheme cannot do with a method, or with what a rule for local steps measures."""
    require(
        not participation.dropout or algorithm.federated,
        f"participation.dropout={participation.dropout}: clients of federated algorithms drop out, and algorithm={algorithm.name} has "
        "workers; leave it out",
    )
    require(
        not participation.dropout or "drift" not in measured,
        f"participation.dropout={participation.dropout}: a rule that measures drift needs all ends of a round; choose other local_steps",
    )
    require(
        not participation.weighs or type(algorithm).update is Algorithm.update,
        f"participation={participation.name}: weighs updates by how likely they were, and algorithm={algorithm.name} uses more of a round "
        "than a weighted sum; choose another scheme",
    )


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


def _counted(key: str, given: Any, default: Any, without: Any, algorithm: Algorithm) -> Any:
    """A top-level number: what was given, else the algorithm's default; refused where it means nothing to the algorithm."""
    if default is None:
        require(given is None, f"{key}={given}: algorithm={algorithm.name} has no {key}; leave it out")
        return without
    return default if given is None else given


def notes(config: Config) -> list[str]:
    """What the user should know of a configuration that can be run: what was given without effect, and what was rounded."""
    used = frozenset[str]().union(*(part.uses for part in config.parts.values()))
    told = []
    for key in ("N_c", "gamma"):
        value = getattr(config, key)
        if value is not None and key not in used:
            readers = [f"{registry.group}={name}" for registry in REGISTRIES for name, part in registry.items() if key in part.uses]
            instead = f"; it is read by {' or '.join(readers)}" if readers else ""
            told.append(f"{key}={value} has no effect here{instead}")
    C = config.C if config.C is not None else config.algorithm.C
    if C is not None and config.algorithm.K is not None:
        K = config.K or _clients(config, config.dataset.census(config.dataset.card(Path(config.data)), config.split_seed)) or 1
        if K >= 1 and 0 < C <= 1 and not math.isclose(C * K, m := cohort(C, K)):
            told.append(
                f"C={C:g} of K={K} clients is {C * K:.6g}: {m} take part in a round (the nearest whole number, of two the even one)"
            )
    return told


def cohort(C: float, K: int) -> int:
    """How many of K clients take part in a round: C K to the nearest whole number, a half to the even one, and at least 1."""
    return max(1, round(C * K))
