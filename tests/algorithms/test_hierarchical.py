"""Hierarchical LocalSGD: blocks that average among themselves, and what they are the same as."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from fl_hydra.algorithms.hierarchical import Hierarchical
from fl_hydra.algorithms.localsgd import POLICIES
from fl_hydra.seams.rows import Batch
from fl_hydra.training.planning import plan_round
from fl_hydra.training.trainer import Trainer
from tests.support.exact import assert_exact
from tests.support.small import HETEROGENEOUS, PLAIN, column, finish, on_quadratics, trained


def same_run(one: Trainer, other: Trainer) -> None:
    """The same models, for as many messages and in the same time."""
    assert_exact(one.state.model, other.state.model)
    assert replace(one.sole_run.traffic, block_averages=0) == other.sole_run.traffic
    assert one.sole_run.seconds == pytest.approx(other.sole_run.seconds)


def test_one_block_is_local_sgd() -> None:
    """Also where the budget ends within a round of blocks: after 2 rounds, 2 periods and 5 samples of each worker."""
    common = ("K=4", "J=2", "samples=340")
    blocks = trained("algorithm=hierarchical", "algorithm.blocks=1", "algorithm.J_b=4", *common)
    same_run(blocks, trained("algorithm=localsgd", *common))
    assert blocks.sole_run.round == 3


@pytest.mark.parametrize("momentum", POLICIES)
def test_blocks_of_single_periods_are_local_sgd(momentum: str) -> None:
    common = ("K=4", "J=3", "samples=250", f"algorithm.momentum={momentum}")
    same_run(trained("algorithm=hierarchical", "algorithm.J_b=1", *common), trained("algorithm=localsgd", *common))


@pytest.mark.parametrize("momentum", POLICIES)
def test_blocks_of_one_worker_are_local_sgd_with_rounds_of_all_periods(momentum: str) -> None:
    common = ("K=4", "samples=250", f"algorithm.momentum={momentum}")
    alone = trained("algorithm=hierarchical", "algorithm.blocks=4", "J=2", "algorithm.J_b=3", *common)
    same_run(alone, trained("algorithm=localsgd", "J=6", *common))


def test_blocks_of_neighbours_are_averaged_in_every_period() -> None:
    a = column(1.0, 2.0, 3.0, 4.0)
    run, b = on_quadratics("algorithm=hierarchical", "algorithm.J_b=3", "K=4", "J=2", "rounds=2", *PLAIN, a=a)
    quadratic, seen = run.group.engine.gradient, []

    def watched(parameters: Tensor, batch: Batch) -> Tensor:
        seen.append(parameters.clone())
        return quadratic(parameters, batch)

    run.group.engine.gradient = watched  # type: ignore[method-assign, assignment]
    x = torch.zeros_like(b)
    for step in range(12):
        if step % 6 == 0:
            run.run_round()
        assert_exact(seen[step], x)
        x = x - 0.1 * a * (x - b)
        if step % 2 == 1:
            x = torch.cat([x[:2].mean(0).expand(2, -1), x[2:].mean(0).expand(2, -1)])
            assert not torch.allclose(x[0], x[2])
        if step % 6 == 5:
            x = x.mean(0).expand_as(x)
    assert_exact(run.state.model, x[:1])


@pytest.mark.parametrize(("J", "J_b"), [(1, 4), (3, 4), (8, 2), (5, 1)])
def test_blocks_are_averaged_after_every_period_but_the_last(J: int, J_b: int) -> None:
    """In a round: after steps J, 2 J, ..., (J_b - 1) J, and never else; after J_b J all workers are."""
    run, _ = on_quadratics(
        "algorithm=hierarchical", f"algorithm.J_b={J_b}", "K=4", f"J={J}", f"samples={3 * 16 * J * J_b}", *PLAIN, a=torch.ones(4, 1)
    )
    for round in range(1, 4):
        mixing = plan_round(run.sole_run).mixing
        assert len(mixing) == J * J_b
        assert [step for step, mixed in enumerate(mixing, 1) if mixed is not None] == [period * J for period in range(1, J_b)]
        run.run_round()
        assert (run.sole_run.traffic.averages, run.sole_run.traffic.block_averages) == (round * J_b, round * (J_b - 1))


def test_rules_count_the_steps_of_every_block() -> None:
    """A round of hierarchical LocalSGD has J_b periods of J steps: a switch comes after so many steps, not after so many rounds."""
    run, _ = on_quadratics(
        "algorithm=hierarchical",
        "algorithm.J_b=2",
        "local_steps=post_local",
        "local_steps.at_step=4",
        "K=2",
        "J=4",
        "samples=200",
        a=HETEROGENEOUS,
    )
    seen = []
    while not run.finished:
        run.run_round()
        seen.append((run.sole_run.J, run.sole_run.traffic.steps))
    assert seen[:4] == [(1, 2), (1, 4), (4, 12), (4, 20)]


def test_blocks_wait_for_their_own_workers() -> None:
    blocks = Hierarchical(blocks=2)
    mixing = blocks.mixing(4, J=2, j=1, steps=8, taken=0)
    assert mixing is not None
    assert blocks.wait(np.array([1.0, 4.0, 2.0, 3.0]), mixing).tolist() == [4, 4, 3, 3]
    common = ("K=4", "J=4", "rounds=3", "speeds=linear", "speeds.throughput=4")
    run, _ = on_quadratics("algorithm=hierarchical", *common, a=torch.ones(4, 1))
    assert finish(run).sole_run.seconds == pytest.approx(3 * 4 * 4 / 0.5), "whose slowest worker is never waited for twice"
