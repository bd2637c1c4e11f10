"""A few rounds of a setting, timed; nothing is kept of them."""

from __future__ import annotations

import dataclasses
import io
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from fl_hydra.config import Config
from fl_hydra.runs.checkpoint import KEPT
from fl_hydra.runs.foresight import Cost
from fl_hydra.runs.standing import size
from fl_hydra.training.experiment import Experiment
from fl_hydra.training.trainer import Trainer

SAMPLES = 2048
"""Samples that are timed on a CPU, in up to eight steps of each row; at least one step."""
WARM, ROUNDS = 2, 3
"""Rounds on a GPU: before the clock starts, in which graphs are recorded, and timed."""
LONG = 1.0
"""Seconds from which an evaluation is not repeated."""
BESIDE = 50_000
"""Bytes of a run's other files, at most."""


def time_rounds(config: Config, experiment: Experiment) -> tuple[Cost, float]:
    """What a setting takes, and the seconds that it took to find out.

    Raises:
        UserError: it cannot be trained.
    """
    began = time.perf_counter()
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if config.threads:
        torch.set_num_threads(config.threads)
    with TemporaryDirectory() as folder:
        if device == "cpu":
            step = experiment.m * experiment.step_samples
            short = dataclasses.replace(experiment, budget=min(experiment.budget, step * max(1, min(8, SAMPLES // step))))
            _train(_trainer(config, dataclasses.replace(experiment, budget=min(experiment.budget, step)), device, folder), None)
            trainer = _trainer(config, short, device, folder)
            evaluation = _evaluated(trainer)
            sample = _train(trainer, None)
        else:
            trainer = _trainer(config, experiment, device, folder)
            evaluation = _evaluated(trainer)
            _train(trainer, WARM)
            sample = _train(trainer, ROUNDS)
        disk = _disk(trainer, Path(folder), experiment.K)
    return Cost(sample, evaluation, disk, "timed"), time.perf_counter() - began


def _trainer(config: Config, experiment: Experiment, device: str, folder: str) -> Trainer:
    return Trainer(experiment, engine=config.engine, device=device, client_folders=[Path(folder)], state_on=config.state_on)


def _train(trainer: Trainer, rounds: int | None) -> float:
    """Seconds for a sample, over some rounds, or to the end."""
    done = trainer.sole_run.samples
    began = _now()
    count = 0
    while not trainer.finished and (rounds is None or count < rounds):
        trainer.run_round()
        count += 1
    return (_now() - began) / max(1, trainer.sole_run.samples - done)


def _evaluated(trainer: Trainer) -> float:
    """Seconds of an evaluation; the first one is no measure, unless it takes long."""
    for _ in range(2):
        began = _now()
        trainer.evaluate()
        if (seconds := _now() - began) > LONG:
            break
    return seconds


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _disk(trainer: Trainer, folder: Path, K: int) -> float:
    """Bytes of a finished run: its last checkpoints, the state of all clients where they have some, and what lies beside."""
    content = trainer.checkpoint()
    written = io.BytesIO()
    torch.save(content, written)
    clients = len(content["clients"])
    state = size(folder) / clients * K if clients else 0.0
    return KEPT * written.tell() + state + BESIDE
