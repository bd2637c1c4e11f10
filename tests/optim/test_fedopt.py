"""The server optimizers of Reddi et al. (ICLR 2021), in float64: their numbers, their limits, and what they are called."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fl_hydra.config import Config
from fl_hydra.errors import UserError
from fl_hydra.optim.fedopt import FedAdagrad, FedAdam, FedOpt, FedYogi
from fl_hydra.optim.outer import Outer, OuterSGD
from fl_hydra.report.axes import AXES
from fl_hydra.runs.identity import describe, run_hash
from fl_hydra.runs.packing import shape
from tests.support.make import config, experiment
from tests.support.quadratics import Quadratics


def stepped(rule: Outer, changes: list[Tensor], second: float = 0.0) -> Tensor:
    """Where a rule comes to from 0 under the mean changes D of some rounds."""
    x = torch.zeros_like(changes[0])
    slots = {name: torch.zeros_like(x) for name in rule.slots}
    if "second_moment" in slots:
        slots["second_moment"].fill_(second)
    hyper = {name: torch.full((1, 1), value, dtype=torch.float64) for name, value in rule.hyper.items()}
    for change in changes:
        rule.step(x, -change, slots, hyper, torch.full((1, 1), rule.lr, dtype=torch.float64), None)  # type: ignore[arg-type]
    return x


def drawn(count: int = 5) -> list[Tensor]:
    return list(torch.randn(count, 1, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))


def test_fedadam_by_hand() -> None:
    """One client, f(x) = (x - 1)^2 / 2, rate 1/2, one step: D = (1 - x) / 2.

    Round 1: D = 0.5, m = 0.05, v = 0.0025, x = 0.1 * 0.05 / (0.05 + 0.001) = 5/51. Round 2: D = 23/51, m = 0.045 + 2.3/51,
    v = 0.99 * 0.0025 + 0.01 (23/51)^2.
    """
    made = Quadratics("algorithm=fedadam", "server.lr=0.1", "C=1", "J=1", "optimizer.lr=0.5", a=(1.0,), b=(1.0,))
    first, second = made.rounds(2)
    assert first == pytest.approx(5 / 51, rel=1e-12)
    m, v = 0.045 + 2.3 / 51, 0.99 * 0.0025 + 0.01 * (23 / 51) ** 2
    assert second == pytest.approx(5 / 51 + 0.1 * m / (math.sqrt(v) + 0.001), rel=1e-12)


def test_each_rule_by_hand() -> None:
    """D = 2, then 1: FedAdagrad has v = 4, 5; FedYogi v = 0.04, then 0.05, as 0.04 < 1; without momentum m = D."""
    changes = [torch.full((1, 1), value, dtype=torch.float64) for value in (2.0, 1.0)]
    adagrad = stepped(FedAdagrad(lr=0.1, tau=0.5), changes)
    assert float(adagrad) == pytest.approx(0.1 * 2 / 2.5 + 0.1 / (math.sqrt(5) + 0.5), rel=1e-12)
    yogi = stepped(FedYogi(lr=0.1, tau=0.5, beta1=0.0), changes)
    assert float(yogi) == pytest.approx(0.1 * 2 / 0.7 + 0.1 / (math.sqrt(0.05) + 0.5), rel=1e-12)


def test_yogi_shrinks_by_the_square_of_a_small_change_where_adam_forgets_a_part() -> None:
    change = [torch.full((1, 1), 0.5, dtype=torch.float64)]
    yogi, adam = (stepped(rule(lr=1.0, beta1=0.0, tau=1.0), change, second=4.0) for rule in (FedYogi, FedAdam))
    assert float(yogi) == pytest.approx(0.5 / (math.sqrt(4 - 0.01 * 0.25) + 1), rel=1e-12)
    assert float(adam) == pytest.approx(0.5 / (math.sqrt(0.99 * 4 + 0.01 * 0.25) + 1), rel=1e-12)


def test_yogi_is_adam_where_v_is_the_square_of_the_change() -> None:
    change = [torch.full((1, 3), 0.5, dtype=torch.float64)] * 4
    assert torch.equal(stepped(FedYogi(), change, second=0.25), stepped(FedAdam(), change, second=0.25))


@pytest.mark.parametrize("rule", [FedAdagrad, FedAdam, FedYogi])
def test_with_a_large_tau_it_is_momentum_as_a_moving_average(rule: type[FedOpt]) -> None:
    """tau -> infinity with lr = tau: x <- x + m, FedAvgM's step with the mean in place of the sum."""
    changes = drawn()
    x, m = torch.zeros_like(changes[0]), torch.zeros_like(changes[0])
    for change in changes:
        m = 0.6 * m + 0.4 * change
        x = x + m
    torch.testing.assert_close(stepped(rule(lr=1e12, tau=1e12, beta1=0.6), changes), x, rtol=1e-9, atol=1e-9)


def test_fedavgm_without_momentum_and_server_sgd_at_rate_1_are_fedavg() -> None:
    command = ("C=1", "J=3")
    plain = Quadratics("algorithm=fedavg", *command).rounds(4)
    assert Quadratics("algorithm=fedavgm", "server.momentum=0", *command).rounds(4) == plain
    assert Quadratics("algorithm=fedavg", "server=sgd", "server.lr=1", *command).rounds(4) == plain
    x, v, found = 0.0, 0.0, []
    for _ in range(4):  # a mean of linear maps: D = (mean of r_k - 1) x + the mean of (1 - r_k) b_k
        v = 0.9 * v + ((0.9**3 + 0.7**3) / 2 - 1) * x + (1 - 0.7**3) / 2
        x += v
        found.append(x)
    assert Quadratics("algorithm=fedavgm", *command).rounds(4) == pytest.approx(found, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "label"), [("fedavgm", "FedAvgM"), ("fedadagrad", "FedAdagrad"), ("fedadam", "FedAdam"), ("fedyogi", "FedYogi")]
)
def test_an_algorithm_of_this_name_is_fedavg_with_this_server(name: str, label: str) -> None:
    preset = experiment(f"algorithm={name}", "server.lr=0.3")
    assert run_hash(preset) == run_hash(experiment("algorithm=fedavg", f"server={name}", "server.lr=0.3"))
    assert AXES["method"].of(describe(preset)) == label
    assert AXES["method"].of(describe(experiment("algorithm=scaffold", f"server={name}"))) == "SCAFFOLD"
    assert AXES["method"].of(describe(experiment("algorithm=fedavg", "server=adam"))) == "FedAvg"


def test_their_numbers_train_together() -> None:
    def shape_of(*more: str) -> str:
        made: Config = config("algorithm=fedyogi", *more)
        return shape(made, experiment("algorithm=fedyogi", *more))

    assert shape_of("server.tau=0.1", "server.beta1=0.5", "server.beta2=0.9") == shape_of()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("server=fedadam server.tau=0", "server.tau=0.0: must be greater than 0"),
        ("server=fedyogi server.beta2=1", "server.beta2=1.0: must be at least 0 and below 1"),
        ("server=fedadagrad server.beta1=-0.1", "server.beta1=-0.1: must be at least 0 and below 1"),
    ],
)
def test_what_cannot_be_is_refused(words: str, line: str) -> None:
    with pytest.raises(UserError, match=line):
        experiment("algorithm=fedavg", *words.split())


def test_momentum_outside_is_no_moving_average() -> None:
    """FedAvgM sums changes: D that does not change comes to D / (1 - beta)."""
    changes = [torch.ones(1, 1, dtype=torch.float64)] * 300
    rule = OuterSGD(momentum=0.9)
    assert float(stepped(rule, changes) - stepped(rule, changes[:-1])) == pytest.approx(10, rel=1e-9)
