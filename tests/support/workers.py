"""Decentralized and asynchronous trainers whose workers follow a field of gradients, and what happens in them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fl_hydra.algorithms.events import EventDriven, Program, WorkersState
from fl_hydra.algorithms.gossip import GossipState
from fl_hydra.arrays import Indices
from fl_hydra.decentralized.clocks import Events
from fl_hydra.optim.schedules import Constant
from fl_hydra.optim.sgdm import SGDM
from fl_hydra.seams.rows import Batch, Gradient, Rows
from fl_hydra.training.experiment import Experiment
from fl_hydra.training.planning import RoundPlan, plan_events, plan_round
from fl_hydra.training.trainer import Trainer
from tests.support.make import experiment

GOSSIP = ["gossip", "gossip_pga", "gossip_aga"]
PAIRS = ["a2cid2", "ad_psgd"]
SERVED = ["async_sgd", "staleness_aware", "easgd", "shat"]
EVENTS = PAIRS + SERVED
METHODS = GOSSIP + EVENTS

RATE = 0.1
"""Learning rate on quadratics."""

Field = Callable[[Tensor, Tensor], Tensor]
"""The gradients [n, P] of some workers, int64 [n], at their parameters [n, P]."""


@cache
def shipped(method: str) -> Experiment:
    """A method as it is shipped, with a model of 83 parameters."""
    return experiment(f"algorithm={method}", "precision=fp64", "model.filters=1", "model.hidden=1")


def make(
    method: str, K: int, J: int, samples: int, *, batch_size: int = 2, engine: str = "loop", folder: Path | None = None, **parts: Any
) -> Trainer:
    """A trainer of that many samples; `parts` replace fields of the experiment or of its algorithm."""
    shape = shipped(method)
    hyper = {name: value for name, value in parts.items() if hasattr(shape.algorithm, name)}
    others = {name: value for name, value in parts.items() if name not in hyper}
    algorithm = replace(shape.algorithm, **hyper)
    algorithm.check(K, 1.0)
    whole = replace(shape, K=K, m=K, J=J, budget=samples, batch_size=batch_size, algorithm=algorithm, **others)
    return Trainer(whole, engine=engine, device="cpu", client_folders=[folder] if folder else None)


def train(run: Trainer) -> Trainer:
    while not run.finished:
        run.run_round()
    return run


def timed(run: Trainer) -> list[RoundPlan]:
    """Only the clock of a run: its plans, without the gradients."""
    plans = []
    while not run.finished:
        algorithm = run.sole_run.experiment.algorithm
        plans.append(plan_events(run.sole_run, algorithm) if isinstance(algorithm, EventDriven) else plan_round(run.sole_run))
        run.sole_run.begin(plans[-1], 0)
        run.sole_run.advance(plans[-1], 0)
    return plans


def override(run: Trainer, **seams: Callable[..., Any]) -> None:
    """Replace seams of its algorithm."""
    for name, function in seams.items():
        setattr(run.sole_run.experiment.algorithm, name, function)


def computing(run: Trainer) -> Callable[[], Indices]:
    """Says, from within a local step, of which workers it is."""
    algorithm = run.sole_run.experiment.algorithm
    workers = [np.arange(run.sole_run.experiment.K)]
    if isinstance(algorithm, EventDriven):
        before = algorithm.before

        def note(state: WorkersState, run: int, program: Program, positions: Indices) -> None:
            workers[0] = program.events.worker[positions]
            before(state, run, program, positions)

        override(run, before=note)
    return lambda: workers[0]


def replace_gradient(run: Trainer, field: Field) -> None:
    """Train on `field` in place of the gradients of the images."""
    workers = computing(run)

    def step(rows: Rows, gradient: Gradient, batches: list[Batch], j: int) -> None:
        rows.descend(field(rows.parameters, torch.from_numpy(workers())), j)

    override(run, step=step)


def pull(parameters: Tensor, workers: Tensor) -> Tensor:
    """The gradients of f_k(x) = (1 + k) / 8 |x - k|^2."""
    k = workers[:, None].double()
    return (1 + k) / 4 * (parameters - k)


def nothing(parameters: Tensor, workers: Tensor) -> Tensor:
    return torch.zeros_like(parameters)


def on(field: Field, method: str, K: int, J: int, rounds: int, *, momentum: float = 0.0, **parts: Any) -> Trainer:
    """A trainer whose workers follow `field` at a constant rate; a batch is one sample, so a whole round is K J of them."""
    optimizer = SGDM(lr=RATE, momentum=momentum, weight_decay=0.0)
    run = make(method, K, J, K * J * rounds, batch_size=1, optimizer=optimizer, scheduler=Constant(), **parts)
    replace_gradient(run, field)
    return run


def state_of(run: Trainer) -> WorkersState | GossipState:
    assert isinstance(run.state, WorkersState | GossipState)
    return run.state


def disagree(run: Trainer) -> Tensor:
    """Give every worker a random model; the [K, P] of them, which the run goes on with."""
    models = state_of(run).workers[0]
    return models.copy_(torch.randn(models.shape, generator=torch.Generator().manual_seed(1), dtype=models.dtype))


def distance(models: Tensor) -> float:
    """From consensus."""
    return float((models - models.mean(0)).norm())


def drawn_events(run: Trainer) -> list[Events]:
    """The events of each of its rounds, as they come."""
    algorithm = run.sole_run.experiment.algorithm
    assert isinstance(algorithm, EventDriven)
    drawn, draw = [], algorithm.events

    def note(*arguments: Any) -> Events:
        drawn.append(draw(*arguments))
        return drawn[-1]

    override(run, events=note)
    return drawn


def gradients(run: Trainer) -> Indices:
    """Of each worker so far, int64 [K]."""
    counts: Indices = run.sole_run.cursors // run.sole_run.experiment.batch_size
    return counts
