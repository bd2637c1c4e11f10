"""The ledger of what is sent."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch

from tests.support.make import trainer
from tests.support.small import finish, on_quadratics, trained


def ledger(*overrides: str, rows: int = 4) -> dict[str, float]:
    """The ledger of a trained run, with bytes in payloads of one model."""
    run, _ = on_quadratics(*overrides, a=torch.ones(rows, 1))
    finish(run)
    payload = 8 * run.group.layout.size
    return {
        name: value / payload if name in ("bytes_up", "bytes_down", "exchanged") else value
        for name, value in asdict(run.sole_run.traffic).items()
    }


def entries(averages: int, K: int, steps: int, within_blocks: int = 0, tensors: int = 1) -> dict[str, float]:
    """What so many means over K workers cost: everyone sends and receives one message, of a model and what else is averaged with it."""
    sent = averages * K
    return {
        "bytes_up": sent * tensors,
        "bytes_down": sent * tensors,
        "messages": 2 * sent,
        "steps": steps,
        "averages": averages,
        "exchanges": 0,
        "exchanged": 0,
        "block_averages": within_blocks,
        "served": 0,
    }


@pytest.mark.parametrize(
    ("overrides", "averages", "steps"),
    [
        ("algorithm=localsgd J=8 rounds=5", 5, 40),
        ("algorithm=localsgd J=8 samples=643", 6, 41),  # the cut round is a round
        ("algorithm=slowmo J=8 rounds=5", 5, 40),
        ("algorithm=diloco J=8 rounds=5", 5, 40),
        ("algorithm=localsgd J=8 rounds=5 server=adam", 5, 40),
        ("algorithm=localsgd J=8 rounds=5 algorithm.momentum=reset", 5, 40),
        ("algorithm=localsgd J=8 rounds=5 algorithm.momentum=average", 5, 40),
        ("algorithm=localsgd J=8 rounds=5 algorithm.momentum=average optimizer=adamw", 5, 40),
        ("algorithm=localsgd J=8 rounds=5 algorithm.momentum=average optimizer=sgd", 5, 40),
        ("algorithm=post_local J=8 local_steps.at_step=8 samples=640", 8 + 4, 40),
        ("algorithm=hierarchical J=2 algorithm.J_b=4 rounds=5", 5 * 4, 40),
        ("algorithm=hierarchical J=2 algorithm.J_b=4 algorithm.blocks=4 rounds=5", 5, 40),
        ("algorithm=hierarchical J=2 algorithm.J_b=4 samples=560", 4 * 4 + 2, 35),
    ],
)
def test_traffic_of(overrides: str, averages: int, steps: int) -> None:
    within_blocks = averages - 5 if "hierarchical" in overrides else 0
    tensors = 1
    if "momentum=average" in overrides:
        tensors += {"optimizer=adamw": 2, "optimizer=sgd": 0}.get(overrides.split()[-1], 1)
    assert ledger(*overrides.split(), "K=4", "batch_size=4") == entries(averages, 4, steps, within_blocks, tensors)


def test_shared_steps_cost_an_average_each_and_take_a_fraction_of_the_time() -> None:
    alone, shared = (trained("algorithm=centralized", "samples=1300", f"data_parallel={n}") for n in (1, 4))
    assert torch.equal(alone.state.model, shared.state.model)
    payload = 8 * shared.group.layout.size
    assert asdict(shared.sole_run.traffic) == {
        **entries(325, 4, 325),
        "bytes_up": 325 * 4 * payload,
        "bytes_down": 325 * 4 * payload,
    }
    assert alone.sole_run.traffic.messages == 0 and alone.sole_run.traffic.steps == 325
    assert shared.sole_run.seconds == pytest.approx(alone.sole_run.seconds / 4)


def test_large_batches_and_local_steps_are_charged_alike() -> None:
    """K workers that share each step pay for what LocalSGD with J=1 pays for."""
    shared = ledger("algorithm=centralized", "samples=1600", "batch_size=16", "data_parallel=4", rows=1)
    assert shared == ledger("algorithm=localsgd", "samples=1600", "K=4", "J=1", "batch_size=4")


def test_traffic_is_counted() -> None:
    run = trainer("algorithm=fedavg", "K=10", "C=0.3", "J=1", "rounds=2", "batch_size=4")
    run.run_round()
    run.run_round()
    payload = run.group.layout.size * 4
    traffic = run.sole_run.traffic
    assert (traffic.bytes_down, traffic.bytes_up, traffic.messages) == (2 * 3 * payload, 2 * 3 * payload, 2 * 3 * 2)
    alone = trainer("epochs=1")
    alone.run_round()
    assert alone.sole_run.traffic.bytes_up == alone.sole_run.traffic.bytes_down == alone.sole_run.traffic.messages == 0
