"""DP-FedAvg: how far one client can move the mean, the noise that hides it, what epsilon is, and what would learn more of a client."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from fl_hydra.algorithms.fedavg import FedAvg
from fl_hydra.errors import UserError
from fl_hydra.resolving import notes, resolve
from fl_hydra.training.trainer import Trainer
from fl_hydra.uplinks import accountant
from fl_hydra.uplinks.accountant import epsilon, usual_delta
from fl_hydra.uplinks.dp import DP
from tests.support.cohorts import Uneven
from tests.support.make import config, experiment, trainer
from tests.support.quadratics import Quadratics

SMALL = ("algorithm=fedavg", "K=6", "C=0.5", "J=2", "rounds=3", "batch_size=8", "model.filters=1", "model.hidden=4", "precision=fp64")


def rounds(run: Trainer) -> Trainer:
    while not run.finished:
        run.run_round()
    return run


def test_the_clip_is_a_ball_and_leaves_what_is_in_it() -> None:
    vectors = torch.tensor([[3.0, 4.0], [0.3, -0.4], [0.0, 0.0]], dtype=torch.float64)
    DP(clip=2.5).encode(vectors, {}, torch.zeros(3, dtype=torch.int64))
    assert vectors.tolist() == [[1.5, 2.0], [0.3, -0.4], [0, 0]]


def test_noise_is_normal_with_the_stated_deviation_and_is_keyed() -> None:
    uplink, width = DP(clip=0.5, noise_multiplier=3.0), 200_001
    one, same, other = (torch.ones(1, width, dtype=torch.float64) for _ in range(3))
    for change, stream in ((one, 7), (same, 7), (other, 8)):
        uplink.arrive(change, 10, stream)
    assert torch.equal(one, same)
    deviation = 3.0 * 2 * 0.5 / 10
    noise, others = ((change[0] - 1).numpy() / deviation for change in (one, other))
    assert stats.kstest(noise, "norm").pvalue > 1e-3 and stats.kstest(noise**2, "chi2", args=(1,)).pvalue > 1e-3
    assert abs(noise.mean()) < 4 / math.sqrt(width) and abs(noise.std() - 1) < 4 / math.sqrt(2 * width)
    for first, second in ((noise, others), (noise[:-1], noise[1:]), (noise[: width // 2], noise[-(width // 2) :])):
        assert abs(np.corrcoef(first, second)[0, 1]) < 5 / math.sqrt(len(first)), "nothing of one draw is in another"


def test_noise_is_added_once_to_the_mean() -> None:
    """To that of the same run without it, whatever the blocks, and in the entries that are sent alone."""
    for more in ((), ("algorithm=fedper",)):
        settings = (*SMALL, *more, "uplink=dp", "uplink.clip=0.1")
        quiet, noisy = (trainer(*settings, f"uplink.noise_multiplier={z}") for z in (0, 2))
        blocks = Trainer(experiment(*settings, "uplink.noise_multiplier=2"), engine="loop", rows_at_once=1)
        before = quiet.state.model.clone()
        expected = torch.zeros(1, noisy.group.shared.width, dtype=torch.float64)
        DP(clip=0.1, noise_multiplier=2).arrive(expected, 3, int(noisy.sole_run.uplink_streams(np.array([-1]))[0]))
        for run in (quiet, noisy, blocks):
            run.run_round()
        added = noisy.state.model - quiet.state.model
        torch.testing.assert_close(noisy.group.shared.of(added), expected, rtol=0, atol=1e-14)
        assert torch.equal(noisy.group.personal.of(added), torch.zeros(1, noisy.group.personal.width, dtype=torch.float64))
        torch.testing.assert_close(blocks.state.model, noisy.state.model, rtol=0, atol=1e-14)
        assert 0 < (quiet.state.model - before).norm() <= 0.1


def test_without_noise_and_clip_it_is_fedavg_with_equal_weights() -> None:
    """On quadratics of clients of different sizes: x <- x + the plain mean of lr a_k (b_k - x) steps."""
    run = Quadratics("algorithm=fedavg", "C=1", "J=1", "uplink=dp", "uplink.clip=null", "uplink.noise_multiplier=0", sizes=[100, 900])
    assert run.rounds(1) == pytest.approx([0.1 * 3 / 2], abs=1e-15)
    settings = (*SMALL, "K=3", "C=1", "sharding=iid")
    plain, private = (rounds(trainer(*settings, *more)) for more in ((), ("uplink=dp", "uplink.clip=null", "uplink.noise_multiplier=0")))
    sizes = plain.sole_run.shard_sizes
    if (sizes == sizes[0]).all():
        torch.testing.assert_close(plain.state.model, private.state.model, rtol=1e-12, atol=1e-12)
    assert plain.sole_run.traffic == private.sole_run.traffic


def test_another_client_moves_the_mean_by_at_most_twice_the_clip() -> None:
    """2 S / m, and it can: one of two clients that are pulled to +100 goes to -100 instead. The clip is of the norm over all entries."""
    settings = ("algorithm=fedavg", "C=1", "J=2", "uplink=dp", "uplink.clip=0.5", "uplink.noise_multiplier=0")
    one, other = (Quadratics(*settings, a=(1, 1), b=b) for b in ((100.0, 100.0), (100.0, -100.0)))
    moved = [float(run.rounds(1)[0]) * math.sqrt(run.run.group.layout.size) for run in (one, other)]
    assert moved == pytest.approx([0.5, 0.0], abs=1e-12)


@pytest.mark.parametrize("samples", [24 + 8, 24 + 1])
def test_all_clients_of_a_cut_round_weigh_the_same(samples: int) -> None:
    """Those that draw nothing, too, so that a client is at most 1 / m of the mean."""
    run = trainer(*SMALL, "J=1", "rounds=null", f"samples={samples}", "uplink=dp", "uplink.noise_multiplier=0", "uplink.clip=0.01")
    run.run_round()
    before = run.state.model.clone()
    plan = run.groups[0].phase.plan(run.sole_run, run._losses)  # type: ignore[arg-type]
    assert plan.weights.tolist() == [1 / 3] * 3 and plan.samples.sum() == samples - 24
    assert (plan.samples == 0).any() == (samples == 25)
    run.run_round()
    trained = int((plan.samples > 0).sum())
    assert 0 < (run.state.model - before).norm() <= 0.01 * trained / 3 * (1 + 1e-9)


def test_epsilon_of_everyone_is_that_of_a_gaussian() -> None:
    """Without sampling: 30 releases with noise 6 are one of noise 6 / sqrt(30), whose exact delta Balle and Wang (ICML 2018) have.

    By hand, RDP of order a is 30 a / (2 36), and gives, by the usual conversion, an epsilon of 0.41667 + sqrt(1.6667 ln(1 / delta)).
    """
    delta = 1e-3
    found = epsilon(20, 20, 6.0, 30, delta)
    assert found is not None
    by_hand = 30 / 72 + math.sqrt(4 * 30 / 72 * math.log(1 / delta))
    mu = math.sqrt(30) / 6
    exact = stats.norm.cdf(mu / 2 - found / mu) - math.exp(found) * stats.norm.cdf(-mu / 2 - found / mu)
    assert found < by_hand and 0.5 * found < by_hand
    assert 0.1 * delta < exact < delta, "an upper bound that is not far off"


def test_epsilon_of_a_sample_is_within_the_bound_of_order_two() -> None:
    """Theorem 27 of Wang et al. at order 2: RDP log(1 + q^2 min(4 (e^(1/z^2) - 1), 2 e^(1/z^2))); of half of the clients it is less than
    of all."""
    K, m, z, count, delta = 100, 10, 2.0, 50, 1e-2
    grown = math.exp(1 / z**2)
    of_two = count * math.log1p((m / K) ** 2 * min(4 * (grown - 1), 2 * grown))
    by_hand = of_two + math.log(1 / 2) - math.log(2 * delta)
    found, everyone = epsilon(K, m, z, count, delta), epsilon(K, K, z, count, delta)
    assert found is not None and everyone is not None
    assert 0 < found <= by_hand + 1e-9 and found < everyone / 2


def test_epsilon_is_what_the_library_says() -> None:
    from dp_accounting import GaussianDpEvent, NeighboringRelation, SampledWithoutReplacementDpEvent, SelfComposedDpEvent
    from dp_accounting.rdp import RdpAccountant

    accounts = RdpAccountant(neighboring_relation=NeighboringRelation.REPLACE_ONE)
    accounts.compose(SelfComposedDpEvent(SampledWithoutReplacementDpEvent(50, 5, GaussianDpEvent(1.1)), 40))
    assert epsilon(50, 5, 1.1, 40, 1e-4) == pytest.approx(accounts.get_epsilon(1e-4), rel=1e-12)
    assert epsilon(50, 5, 0.0, 40, 1e-4) == math.inf and epsilon(50, 5, 1.1, 0, 1e-4) == 0


def test_it_is_told_before_training_and_without_the_library_too(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ("algorithm=fedavg", "K=50", "C=0.1", "rounds=40", "uplink=dp", "uplink.noise_multiplier=1.1")
    expected = epsilon(50, 5, 1.1, 40, usual_delta(50))
    (note,) = notes(config(*settings))
    assert note == (
        f"uplink=dp: after 40 rounds of 5 of 50 clients epsilon is {expected:.3g} at delta=0.014 (for another client in place of one)"
    )
    assert "epsilon is infinite" in notes(config(*settings[:-1], "uplink.noise_multiplier=0"))[0]
    accountant.epsilon.cache_clear()
    monkeypatch.setattr(accountant, "find_spec", lambda name: None)
    assert notes(config(*settings))[0].startswith("uplink=dp: after 40 rounds of 5 of 50 clients epsilon is not known: pip install")
    accountant.epsilon.cache_clear()


@dataclass
class Concluding(FedAvg):
    """Says something after the last round."""

    concludes: ClassVar[bool] = True


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("uplink.clip=0",), "uplink.clip=0.0: the largest norm of what a client sends must be greater than 0 and finite; null clips none"),
        (("uplink.noise_multiplier=-1",), "uplink.noise_multiplier=-1.0: must be 0"),
        (("uplink.clip=null",), "uplink.noise_multiplier=1.0: noise is in proportion to uplink.clip, and without it hides nobody"),
        (
            ("algorithm=scaffold", "optimizer=sgd"),
            "uplink=dp: hides a client .* the server of algorithm=scaffold learns more than that mean",
        ),
        (("algorithm=localsgd", "K=4"), "the server of algorithm=localsgd learns more"),
        (("participation=skewed", "gamma=1"), "participation=skewed: some clients are more likely .* choose participation=uniform"),
        (("participation=afl",), "participation=afl: some clients are more likely to take part than others, or it asks them"),
        (("participation=cyclic",), "participation=cyclic: some"),
        (("participation.dropout=0.1",), "participation.dropout=0.1: uplink=dp divides by a fixed number of clients, all of which report"),
        (("local_steps=drift",), "local_steps=drift: chooses J by what clients measure, without noise; with uplink=dp choose a rule that"),
    ],
)
def test_what_would_tell_more_of_a_client_is_refused(words: tuple[str, ...], line: str) -> None:
    method = [word for word in words if word.startswith(("algorithm=", "K="))] or ["algorithm=fedavg", "K=20", "C=0.2"]
    rest = [word for word in words if word not in method]
    with pytest.raises(UserError, match=line):
        resolve(config(*method, "samples=640", "uplink=dp", *rest))


def test_methods_that_send_more_say_so() -> None:
    assert FedAvg().sends_mean_alone and not Concluding().sends_mean_alone


def test_statistics_of_a_model_and_clients_without_samples_are_refused() -> None:
    settings = ("model=lenet_bn", *SMALL[:-3], "uplink=dp")
    with pytest.raises(UserError, match="uplink=dp: BatchNorm's running statistics are sent with the model, without noise"):
        trainer(*settings)
    trainer(*settings, "algorithm=fedbn")  # where they stay with their client
    with pytest.raises(UserError, match="uplink=dp: 1 of 8 clients have no samples and are never drawn"):
        trainer("algorithm=fedavg", "K=8", "C=0.5", "samples=640", "uplink=dp", sharding=Uneven())


def test_a_run_is_the_same_whoever_asks_for_its_noise() -> None:
    """Noise belongs to (seed, round): other seeds and other rounds have other noise."""
    drawn: list[Tensor] = []
    for seed in (1, 2):
        run = trainer(*SMALL, "uplink=dp", f"seed={seed}")
        for _ in range(2):
            change = torch.zeros(1, 50, dtype=torch.float64)
            DP().arrive(change, 3, int(run.sole_run.uplink_streams(np.array([-1]))[0]))
            drawn.append(change)
            run.run_round()
    assert len({tuple(change[0].tolist()) for change in drawn}) == 4
