"""Which runs can train together."""

from __future__ import annotations

import json
from dataclasses import asdict

from fl_hydra.config import Config
from fl_hydra.training.experiment import Experiment


def shape(config: Config, experiment: Experiment) -> str:
    """What runs must have in common to be rows of one training: equal texts can.

    Seeds, learning rates and other numbers of the optimizers, a method's own numbers (`Algorithm.hyper`), schedules, budgets, shardings,
    participation and speeds may differ.
    """
    e = experiment
    common = {
        "dataset": asdict(e.dataset),
        "data": [str(e.data), e.dataset_info.fingerprint, e.split_seed],
        "model": [asdict(model) for model in e.models],
        "algorithm": e.algorithm.form,
        "optimizer": e.optimizer.form,
        "server": [e.server.form, e.server.averages],
        "uplink": asdict(e.uplink),
        "steps": [e.K, e.m, e.J, asdict(e.local_steps), e.batch_size, e.noise_scale, e.precision],
        "averages": e.swa is not None,
        "shows": sorted(e.participation.measures),
        "where": [config.device, config.engine, config.state_on, config.threads, config.checkpoint.seconds],
    }
    return json.dumps(common, sort_keys=True)


def packs(shapes: list[str], most: int) -> list[list[int]]:
    """Positions of runs in groups of equal shape, each of at most `most`, in the order of the request."""
    groups: dict[str, list[list[int]]] = {}
    ordered: list[list[int]] = []
    for position, text in enumerate(shapes):
        mine = groups.setdefault(text, [])
        if not mine or len(mine[-1]) >= most:
            mine.append([])
            ordered.append(mine[-1])
        mine[-1].append(position)
    return ordered
