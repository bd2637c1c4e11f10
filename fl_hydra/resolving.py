"""From a configuration to an :class:`Experiment`: every number worked out, and every combination checked, before anything is trained.

Nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

from fl_hydra.algorithms.base import Algorithm
from fl_hydra.compatibility import Choice, check_compatibility
from fl_hydra.config import REGISTRIES, Config, Evaluation
from fl_hydra.data.public import without_public
from fl_hydra.data.sample_owners import SampleCounts
from fl_hydra.errors import UserError, require
from fl_hydra.models.base import Model, models
from fl_hydra.options import has_option, made, option_names, read_option
from fl_hydra.training.averages import SWA
from fl_hydra.training.experiment import Experiment

DISTRIBUTED_EPOCHS = 150
FEDERATED_SAMPLES = 5_120_000


def resolve(config: Config) -> Experiment:
    """Check the combination and work out every number; reads no more of the dataset than its description.

    Raises:
        UserError: one line that says what was wrong, what is allowed and what to do.
    """
    algorithm = config.algorithm
    J: int | None = algorithm.own_steps(config.batch_size)
    require(
        J is None or config.J is None,
        f"J={config.J}: algorithm={algorithm.name} already takes {J} steps of batch_size={config.batch_size} in a round; leave J out",
    )
    J = _counted("J", config.J, algorithm.J, 1 if algorithm.federated else None, algorithm) if J is None else J
    require(J is None or J >= 1, f"J={J}: at least 1 local step is needed in a round")
    info = config.dataset.info(Path(config.data))
    sample_counts = _of_clients(config, config.dataset.sample_counts(info, config.split_seed))
    K: int = _counted("K", config.K, _clients(config, sample_counts), 1, algorithm)
    C: float = _counted("C", config.C, algorithm.C, 1.0, algorithm)
    algorithm.check(K, C)
    require(
        not (algorithm.needs_labels or "label_counts" in algorithm.row_facts) or sample_counts.classes is not None,
        f"algorithm={algorithm.name}: counts labels, and samples of dataset={config.dataset.name} have none; choose images",
    )
    require(
        not (algorithm.one_target and info.everywhere),
        f"algorithm={algorithm.name}: compares samples of one target each, and those of dataset={config.dataset.name} have one at every "
        "position; choose dataset=shakespeare, or images",
    )
    config.model.check(info)
    architectures = _architectures(config)
    for model in architectures:
        model.check(info)
    _check_samples(config, sample_counts.total)
    N_c = config.N_c if "N_c" in config.sharding.uses else None
    gamma = config.gamma if "gamma" in config.participation.uses else None
    config.sharding.check(sample_counts, K, N_c, config.seed)
    config.scheduler.check(config.batch_size)
    m = cohort(C, K)
    config.participation.check(config.participation.drawable(K, m) if algorithm.federated else K, m, gamma)
    choice = Choice(config, K, C, m, J, sample_counts.classes is not None)
    check_compatibility(choice)
    by_itself = algorithm.personalised or choice.local_statistics  # then `dealt` asks for what there is anyway
    personal = None if by_itself and config.evaluation.personal == "dealt" else config.evaluation.personal
    personalised = by_itself or personal is not None
    experiment = Experiment(
        dataset=config.dataset,
        dataset_info=info,
        model=config.model,
        optimizer=config.optimizer,
        server=config.server,
        scheduler=config.scheduler,
        algorithm=algorithm,
        local_steps=config.local_steps,
        sharding=config.sharding,
        participation=config.participation,
        speeds=config.speeds,
        uplink=config.uplink,
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
        noise_scale=choice.measures_noise,
        precision=config.precision,
        seed=config.seed,
        split_seed=config.split_seed,
        data=Path(config.data),
        swa=None if config.swa.start is None else config.swa,
        architectures=architectures,
        personal=personal,
        shard_part=config.evaluation.shard_part if personal == "shards" else None,
        joining_steps=config.evaluation.joining_steps if personalised and config.participation.held_out is not None else None,
    )
    budget = _budget(config, experiment, sample_counts.total)
    if J is not None:
        config.local_steps.check(J, -(-budget // (m * experiment.step_samples)))
        config.algorithm.check_steps(choice.fewest_steps)
    return dataclasses.replace(experiment, budget=budget)


def _architectures(config: Config) -> tuple[Model, ...]:
    """The models of clients, where they may have several.

    Raises:
        UserError: there is no such option, or `model=` is none of them.
    """
    names, mine = config.algorithm.models_of_clients, config.model.option
    known = [*option_names("model"), *(name for name in models if not has_option("model", name))]
    for name in names:
        require(name in known, f"algorithm.architectures: there is no model={name}; choose from {', '.join(known)}")
    require(
        not names or mine in names,
        f"model={mine}: no client has it with algorithm.architectures={'|'.join(names)}; choose model={names[0] if names else mine}, say, "
        "or name it there",
    )
    return tuple(config.model if name == mine else made(read_option("model", name)) for name in names)


def _of_clients(config: Config, counts: SampleCounts) -> SampleCounts:
    """The counts of the training samples that are not public.

    Raises:
        UserError: too many are, or they cannot be taken from whoever holds them.
    """
    public = config.algorithm.public
    if not public:
        return counts
    name = config.dataset.name
    require(
        counts.classes is not None and counts.users is None,
        f"algorithm.public_samples={public}: takes labelled samples that belong to nobody, and dataset={name} has none; choose digits, say",
    )
    require(public < counts.total, f"algorithm.public_samples={public}: dataset={name} has {counts.total} training samples; choose fewer")
    return without_public(counts, public)


def _check_samples(config: Config, total: int) -> None:
    require(total > 0, f"dataset.validation={config.dataset.validation}: no sample is left for training; choose a smaller fraction")
    public = config.algorithm.public
    besides = f" besides algorithm.public_samples={public}" if public else ""
    require(config.batch_size <= total, f"batch_size={config.batch_size}: there are {total} training samples{besides}; choose 1 to {total}")


def _budget(config: Config, experiment: Experiment, total: int) -> int:
    """Samples of the whole run. total: training samples.

    Raises:
        UserError: it is given in rounds, which differ in length.
    """
    if config.samples is not None:
        return config.samples
    if config.epochs is not None:
        return max(1, round(config.epochs * total))
    if config.rounds is None:
        return FEDERATED_SAMPLES if experiment.algorithm.federated else DISTRIBUTED_EPOCHS * total
    whole = experiment.round_samples
    if whole is None:
        why = "local_steps.spread" if config.local_steps.steady else f"local_steps={config.local_steps.name}"
        raise UserError(f"rounds={config.rounds}: with {why} rounds differ in length, so their number is no budget; give epochs or samples")
    return config.rounds * whole


def _clients(config: Config, sample_counts: SampleCounts) -> int | None:
    """The number of clients or workers where none was given; None where the algorithm has no K."""
    return config.algorithm.K if sample_counts.users is None or not config.algorithm.federated else len(sample_counts.users)


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
    if config.swa.start is None and config.swa != SWA():
        told.append("swa.cycle and swa.lr2 have no effect without swa.start")
    if config.swa.start is not None and (rounds := resolve(config).rounds) is not None:
        averaged = 1 + int(rounds - math.ceil(config.swa.start * rounds)) // config.swa.cycle
        if averaged == 1:
            told.append(
                f"swa.cycle={config.swa.cycle}: no cycle ends in the rounds after swa.start, so that the average is of one model alone"
            )
    chosen, default = config.evaluation, Evaluation()
    if chosen.shard_part != default.shard_part and chosen.personal != "shards":
        told.append("evaluation.shard_part has no effect without evaluation.personal=shards")
    if chosen.joining_steps != default.joining_steps and resolve(config).joining_steps is None:
        told.append("evaluation.joining_steps has no effect where no client is held out and judged (participation.held_out)")
    C = config.C if config.C is not None else config.algorithm.C
    if C is not None and config.algorithm.K is not None:
        K = config.K or _clients(config, config.dataset.sample_counts(config.dataset.info(Path(config.data)), config.split_seed)) or 1
        if K >= 1 and 0 < C <= 1 and not math.isclose(C * K, m := cohort(C, K)):
            told.append(f"C={C:g} of K={K} clients is {C * K:.6g}: {m} take part in a round (rounded, halves to even)")
    if config.uplink.private:
        e = resolve(config)
        told.append(config.uplink.note(config.participation.drawable(e.K, e.m), e.m, e.rounds))
    return told


def cohort(C: float, K: int) -> int:
    """How many of K clients take part in a round: C K to the nearest whole number, a half to the even one, and at least 1."""
    return max(1, round(C * K))
