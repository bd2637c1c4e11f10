"""Numbers of local steps that are planned."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import numpy as np
import pytest
import torch

from fl_hydra.local_steps.base import local_step_rules
from fl_hydra.local_steps.scheduled import Doubling, Fixed, Linear, Phases, PostLocal
from tests.support.exact import assert_exact
from tests.support.small import HETEROGENEOUS, PLAIN, column, finish, normal, on_quadratics, small, steps_of_rounds, trained


@pytest.mark.parametrize(("switch", "J"), [(0, 4), (1, 1)])
def test_post_local_sgd_is_local_sgd_before_and_after_its_switch(switch: int, J: int) -> None:
    post = trained("algorithm=post_local", f"local_steps.switch={switch}", "K=4", "J=4", "samples=250")
    plain = trained("algorithm=localsgd", "K=4", f"J={J}", "samples=250")
    assert torch.equal(post.state.model, plain.state.model)
    assert post.sole_run.traffic == plain.sole_run.traffic


@pytest.mark.parametrize("at_step", [0, 1, 5])
def test_post_local_sgd_switches_at_its_step(at_step: int) -> None:
    run, _ = on_quadratics("algorithm=post_local", f"local_steps.at_step={at_step}", "K=2", "J=4", "samples=136", a=HETEROGENEOUS)
    steps = steps_of_rounds(run)
    assert steps[:at_step] == [1] * at_step
    assert steps[at_step : at_step + 3] == [4, 4, 4]
    assert sum(steps) == 17


def test_post_local_sgd_switches_after_its_fraction_of_the_budget() -> None:
    run, _ = on_quadratics("algorithm=post_local", "local_steps.switch=0.5", "K=2", "J=4", "samples=256", a=HETEROGENEOUS)
    assert steps_of_rounds(run) == [1] * 16 + [4] * 4


SCHEDULES_OF_J = [
    *("linear", "doubling", "post_local local_steps.at_step=5", "phases local_steps.numbers=[3,1] local_steps.borders=[0.2,0.6]"),
    "drift",  # follows what it sees, which is nobody's plan
]


@pytest.mark.parametrize("rule", SCHEDULES_OF_J)
@pytest.mark.parametrize("momentum", ["optimizer=sgd", "optimizer=sgdm"])
def test_a_schedule_of_steps_changes_the_number_of_averages_and_nothing_else(rule: str, momentum: str) -> None:
    """On that quadratic, along the same noise: as many averages as J_t has numbers, of which the sum is the number of steps."""
    a = torch.ones(4, 1, dtype=torch.float64)
    b = normal(1, 1).expand(4, 1)
    common = ("algorithm=localsgd", "K=4", "samples=512", "optimizer.lr=0.05", momentum)  # 32 steps of 16 samples, at rates that fall
    scheduled, _ = on_quadratics(*common, "J=6", f"local_steps={rule.split()[0]}", *rule.split()[1:], a=a, b=b, noisy=True)
    together, _ = on_quadratics(*common, "J=1", a=a, b=b, noisy=True)
    numbers = steps_of_rounds(scheduled)
    assert sum(numbers) == 32
    assert len(set(numbers)) > 1, "else it is no schedule"
    assert scheduled.sole_run.traffic.averages == len(numbers)
    assert_exact(scheduled.state.model, finish(together).state.model)


# Rules for the number of local steps


@pytest.mark.parametrize("name", list(local_step_rules))
@pytest.mark.parametrize(
    ("cohort", "spread"),
    [(("algorithm=localsgd", "K=5"), 0.0), (("algorithm=localsgd", "K=5"), 0.6), (("algorithm=fedavg", "K=6", "C=0.5"), 0.6)],
    ids=["workers", "unequal workers", "unequal clients"],
)
def test_every_rule_spends_the_same_samples(name: str, cohort: tuple[str, ...], spread: float) -> None:
    rule = local_step_rules[name](spread=spread)
    run = small(*cohort, "J=8", "samples=403", local_steps=rule, noise_scale="noise" in rule.measures, engine="stacked")
    while not run.finished:
        run.run_round()
        assert run.sole_run.J is not None and 1 <= run.sole_run.J <= 8
    assert run.sole_run.samples == run.sole_run.computed == run.sole_run.cursors.sum() == 403


TENTHS = [tenth / 10 for tenth in range(10)]


@pytest.mark.parametrize(
    ("rule", "J", "expected"),
    [
        (Fixed(), 8, [8] * 10),
        (Linear(), 10, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
        (Linear(start=6), 10, [6, 6, 7, 7, 8, 8, 9, 9, 10, 10]),
        (Linear(start=4), 4, [4] * 10),
        (Doubling(), 16, [1, 1, 2, 2, 4, 4, 8, 8, 16, 16]),
        (Doubling(start=4), 8, [4] * 5 + [8] * 5),
        (Doubling(start=3), 10, [3] * 5 + [6] * 5),
        (Phases(), 8, [1, 1, 1, 4, 4, 8, 8, 8, 8, 8]),
        (Phases(borders=[0.1, 0.8, 1.0], numbers=[7, 2, 3]), 5, [7] + [2] * 7 + [3] * 2),
        (PostLocal(switch=0.3), 8, [1] * 3 + [8] * 7),
        (PostLocal(switch=0.9, at_step=3), 8, [1] * 3 + [8] * 7),
    ],
    ids=repr,
)
def test_scheduled_numbers_of_steps(rule: Any, J: int, expected: list[int]) -> None:
    numbers: list[int] = []
    for progress in TENTHS:
        numbers.append(rule.steps(J, progress, sum(numbers), {}))
    assert numbers == expected


def test_doubling_gives_every_number_an_equal_part() -> None:
    numbers = [Doubling().steps(64, step / 7000, 0, {}) for step in range(7000)]
    assert [(number, len(list(group))) for number, group in groupby(numbers)] == [(2**i, 1000) for i in range(7)]


# Unequal work


@pytest.mark.parametrize("K", [1, 2, 3, 7, 16])
@pytest.mark.parametrize("steps", [1, 2, 8, 33])
@pytest.mark.parametrize("spread", [0.0, 0.3, 0.5, 0.99])
def test_unequal_work_is_equally_spaced_around_its_mean(K: int, steps: int, spread: float) -> None:
    rule = Fixed(spread=spread)
    workers = rule.of_clients(steps, np.ones(K), federated=False, seed=0)
    assert workers.dtype == np.int64 and workers.shape == (K,)
    assert workers.mean() == steps and workers.min() >= 1
    if K > 1:
        assert abs(workers - steps * np.linspace(1 - spread, 1 + spread, K)).max() <= max(0.5, 1 - steps * (1 - spread)) + 1e-9
    assert (np.diff(workers) >= 0).all()
    clients = rule.of_clients(steps, np.ones(K), federated=True, seed=0)
    assert sorted(clients.tolist()) == workers.tolist()


@pytest.mark.parametrize("federated", [False, True])
def test_slow_workers_do_less_work(federated: bool) -> None:
    speeds = np.array([1.0, 0.2, 3.0, 0.5, 2.0])
    steps = Fixed(spread=0.5).of_clients(20, speeds, federated, seed=0)
    assert steps.tolist() == [20, 10, 30, 15, 25]


def test_unequal_work_of_clients_is_drawn_once_for_a_seed() -> None:
    def drawn(seed: int) -> list[int]:
        steps: list[int] = Fixed(spread=0.5).of_clients(10, np.ones(20), federated=True, seed=seed).tolist()
        return steps

    assert drawn(0) == drawn(0) != drawn(1)
    assert drawn(0) != sorted(drawn(0))


def test_workers_count_alike_however_many_steps_they_took() -> None:
    """In the cut last round, too, where all of them stop in the middle."""
    a = column(1.0, 2.0, 3.0)
    run, b = on_quadratics("algorithm=localsgd", "K=3", "J=4", "samples=72", "local_steps.spread=0.5", *PLAIN, a=a)
    x = torch.zeros_like(b[0])
    for steps in ([2, 4, 6], [1, 2, 3]):
        x = (b + (1 - 0.1 * a) ** column(*steps) * (x - b)).mean(0)
        run.run_round()
        assert_exact(run.state.model[0], x)
    assert run.sole_run.cursors.tolist() == [12, 24, 36]


def test_workers_of_a_cut_round_count_by_the_samples_that_were_left_for_them() -> None:
    """And take steps in proportion: of one of the four samples of a batch, a quarter of the rate."""
    run, b = on_quadratics("algorithm=localsgd", "K=3", "J=1", "samples=4", *PLAIN, a=torch.ones(3, 1))
    run.run_round()
    assert run.sole_run.cursors.tolist() == [2, 1, 1]
    assert_exact(run.state.model[0], 0.1 * (0.5 * b[0] / 2 + 0.25 * b[1] / 4 + 0.25 * b[2] / 4))
